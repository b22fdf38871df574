"""What Esper is measured by; `python -m benchmarks` runs all of it."""
