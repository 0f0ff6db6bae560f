"""The work that one request may cost, so that no schema blocks a worker."""

from xalen_batch.backends.simulated.schemas.errors import NoValue

# A step takes about 10 µs: merging a schema, validating a short string.
MOST_STEPS = 20_000


class Budget:
    """Steps that are left. Shared by all choices of a request."""

    def __init__(self, steps: int = MOST_STEPS) -> None:
        self._left = steps

    def spend(self, steps: int = 1) -> None:
        """Count steps before they are made. Raises NoValue if there are not enough left."""
        if steps > self._left:
            self._left = 0
            raise NoValue("the schema is too complex for the simulated models")
        self._left -= steps

    @property
    def is_spent(self) -> bool:
        return self._left == 0
