"""HTTP clients for model servers: one for plain HTTP, one for all else (docs/decisions/0012)."""
