"""Metrics for Prometheus: what a process counts, and the port on which it serves the numbers."""
