"""Schedules: when they fire, what a run reads, and what became of every instant."""
