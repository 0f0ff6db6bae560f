"""The HTTP wire and nothing else."""
