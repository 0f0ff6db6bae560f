"""The commands. Thin: each finds its inputs, calls one room or the API, and prints."""
