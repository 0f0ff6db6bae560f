"""Everything that happens to a batch while it is `validating`: its file is read in pieces, checked
line by line, and cut into tasks.
"""
