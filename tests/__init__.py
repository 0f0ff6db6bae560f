"""The tests, and the programs of `make chaos`, `make attack` and `make fuzz`."""

from pathlib import Path

# The repository.
ROOT = Path(__file__).parents[1]
