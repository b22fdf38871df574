"""Tests that need a CUDA device; `benchmarks/gpu_suite.sh` runs them first."""
