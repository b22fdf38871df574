"""Benchmarks for a CUDA device, run by `benchmarks/gpu_suite.sh`."""
