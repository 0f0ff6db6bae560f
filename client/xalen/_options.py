"""Options that every method takes beside the fields of its request."""

from collections.abc import Mapping
from typing import Any, TypedDict

from openai import RequestOptions, Timeout


class Overrides(TypedDict, total=False):
    """As in every method of `openai`: they take precedence over values of the client."""

    extra_headers: Mapping[str, str]
    extra_query: Mapping[str, object]
    extra_body: Mapping[str, object]
    timeout: float | Timeout | None


def split(
    given: Mapping[str, Any], query: Mapping[str, object] | None = None
) -> tuple[dict[str, Any], RequestOptions]:
    """The fields of a request's body, and the options of `openai`'s `client.post` and the like."""
    body = {name: value for name, value in given.items() if name not in Overrides.__annotations__}
    params = {name: value for name, value in (query or {}).items() if value is not None}
    options: RequestOptions = {"params": {**params, **given.get("extra_query", {})}}
    if "extra_headers" in given:
        options["headers"] = given["extra_headers"]
    if "extra_body" in given:
        options["extra_json"] = given["extra_body"]
    if "timeout" in given:
        options["timeout"] = given["timeout"]
    return body, options


def options(given: Mapping[str, Any], query: Mapping[str, object] | None = None) -> RequestOptions:
    """The options of a request without a body."""
    return split(given, query)[1]


def path(template: str, **ids: str) -> str:
    """A path with the ids of its objects. ValueError for an id that would change the path."""
    for name, value in ids.items():
        if not value or not value.replace("-", "").replace("_", "").isalnum():
            raise ValueError(f"{name} is not an id: {value!r}")
    return template.format(**ids)
