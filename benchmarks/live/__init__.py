"""Benchmarks of training that changes: overhead, replays, kills."""
