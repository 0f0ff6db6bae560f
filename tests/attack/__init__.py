"""Greedy and hostile callers, tenants and model servers against a running system: `make attack`.

Each attack is a module with a function `attack(system, size)` that yields what it measured, each
figure with its bound. It uses only what an outsider can reach: the API, the command line, a model
server of its own, Redis.
"""
