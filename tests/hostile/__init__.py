"""Hostile input as data: what is sent, and what has to come of it."""
