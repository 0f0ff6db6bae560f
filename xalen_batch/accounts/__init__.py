"""Accounts, their API keys, their quotas, and the audit log."""
