"""The endpoints of lines: one module for each, with the form of its requests, their tokens, and
the usage of its answers. Pure: nothing here sends, stores or bills.
"""
