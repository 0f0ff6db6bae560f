"""How a request reaches a model server: one contract, and a client for each kind of way
(docs/decisions/0012).
"""
