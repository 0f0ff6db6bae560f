"""While a batch is `validating`: its file is read in pieces, checked line by line, and cut into
tasks.
"""
