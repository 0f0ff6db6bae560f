"""The API's description, made once in a test process: it takes half a second of CPU."""

from functools import cache
from typing import Any

from xalen_batch.api import app


@cache
def description() -> dict[str, Any]:
    """The OpenAPI document that the API serves. Not to be changed."""
    return app.create_app().openapi()
