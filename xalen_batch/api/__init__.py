"""The HTTP API: a module of routes for each noun, and `http/` below them."""
