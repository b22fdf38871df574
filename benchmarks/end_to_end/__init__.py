"""Whole models through `esper-opt`, on every backend."""
