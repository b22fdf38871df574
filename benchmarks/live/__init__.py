"""Figures of live surgery."""
