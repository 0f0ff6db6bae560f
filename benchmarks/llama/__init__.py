"""A real llama.cpp server with a model of random weights: what it says is nonsense, how it keeps
prompts is not.
"""
