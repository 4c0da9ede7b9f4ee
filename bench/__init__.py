"""Benchmarks: one file an op, one harness for all. `make bench`."""
