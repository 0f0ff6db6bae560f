"""The resources of a client beside those of `openai`, each in both colours."""
