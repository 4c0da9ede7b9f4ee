"""Benchmarks: one file an op, one harness for all, and the demo. `make bench`, `make demo`."""
