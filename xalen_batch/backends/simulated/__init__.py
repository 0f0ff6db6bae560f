"""Models that are simulated: deterministic, honest about it, with the catalog's latencies and
faults on request.
"""
