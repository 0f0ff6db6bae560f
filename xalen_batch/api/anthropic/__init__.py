"""Anthropic's Message Batches: another view of the same batches, for that API's clients."""
