"""Benchmarks of structure: scaling, exactness, tightness."""
