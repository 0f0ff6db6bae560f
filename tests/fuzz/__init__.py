"""A coverage-guided fuzz of the reader of input files: `make fuzz`, or `python -m tests.fuzz
--help`.
"""
