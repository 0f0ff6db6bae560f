"""Simulated models: deterministic, marked as simulated, with the catalog's latencies."""
