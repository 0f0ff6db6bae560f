"""Accounts: their keys, what they may hold, and the audit log of what was changed."""
