"""A model server that is never the bottleneck, as a process of its own: `python -m benchmarks.mock
--help`.
"""
