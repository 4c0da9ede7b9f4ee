"""Triton kernels and their launchers: one file an op; layout.py holds the index walk that they share."""
