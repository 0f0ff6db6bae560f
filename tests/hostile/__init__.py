"""Hostile input as data, each with the required outcome."""
