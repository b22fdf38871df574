"""Benchmarks of training that changes: overhead, signals, replays, kills."""
