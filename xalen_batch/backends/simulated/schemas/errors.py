"""Why there is no value for a schema."""


class InvalidSchema(ValueError):
    """The document is no JSON Schema, or not one that can be read offline."""


class NoValue(ValueError):
    """No value fits a schema, or none was found. `path` leads to the part at fault."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.path: tuple[str, ...] = ()

    def under(self, name: str | int) -> "NoValue":
        """This error as one of a property or an item."""
        self.path = (str(name), *self.path)
        return self

    def __str__(self) -> str:
        return f"at {'.'.join(self.path)}: {self.reason}" if self.path else self.reason
