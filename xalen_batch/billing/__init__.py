"""Money: prices, terms of batches, charges of lines, invoices, statements, and reconciliation."""
