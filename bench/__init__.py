"""Benchmarks of every rule for pytest-benchmark; see README.md."""
