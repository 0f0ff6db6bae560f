"""Money: prices over time, the charge of a line, invoices of batches, statements of months, and
their proof.
"""
