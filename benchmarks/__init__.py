"""How fast xalen-batch is, what that costs, and what the alternatives do on the same machine: `make
bench`.
"""
