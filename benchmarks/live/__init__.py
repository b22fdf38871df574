"""Benchmarks of live surgery."""
