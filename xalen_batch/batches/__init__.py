"""Batches: create, list and follow them, and retry their failed lines."""
