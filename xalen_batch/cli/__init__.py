"""The commands: each reads its inputs, calls a service or the API, and prints."""
