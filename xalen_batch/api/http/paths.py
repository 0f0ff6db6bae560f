"""The path of a request: its normal form, its methods, and the hint if no route has it."""

import re

from starlette.requests import Request
from starlette.routing import BaseRoute, Match, Mount
from starlette.types import Scope

from xalen_batch.api.anthropic import errors as anthropic

VERSION = "/v1"
METHODS = ("DELETE", "GET", "PATCH", "POST", "PUT")
SLASHES = re.compile("//+")
# Azure's paths: `/openai/files`, `/openai/v1/files`, `/openai/deployments/NAME/chat/completions`.
AZURE = "/openai/"
_AZURE = re.compile("/openai(?:/v1|/deployments/([^/]+))?(?=/)")
# The key of an ASGI scope that holds the method as it was sent.
SENT_METHOD = "xalen.method"
# The key of an ASGI scope that holds the id of the request.
REQUEST_ID = "xalen.request_id"
# The key of an ASGI scope that holds the deployment of an Azure path: the model's name.
DEPLOYMENT = "xalen.deployment"
# The most leading segments that are removed to find the route that was meant.
MOST_PREFIXES = 6


def normal(path: str) -> str:
    """A path without repeated and trailing slashes."""
    if not path.endswith("/") and "//" not in path:
        return path
    return SLASHES.sub("/", path).rstrip("/") or "/"


def of_azure(path: str) -> tuple[str, str | None]:
    """The path behind Azure's prefix, and the deployment that the prefix names."""
    if not path.startswith(AZURE):
        return path, None
    prefix = _AZURE.match(path)
    if prefix is None:
        return path, None
    return VERSION + path[prefix.end() :], prefix[1]


def method(scope: Scope) -> str:
    """The method as the client sent it."""
    sent: str = scope.get(SENT_METHOD, scope["method"])
    return sent


def allowed(request: Request) -> list[str]:
    """All methods of a request's path, sorted, for the Allow header."""
    methods = _methods(request, request.url.path)
    return sorted([*methods, "HEAD"] if "GET" in methods else methods)


def hint(request: Request) -> str:
    """The remedy for a path without a route: another base URL, or the docs."""
    path = request.url.path
    origin = str(request.base_url).rstrip("/")
    if anthropic.PREFIX in path:
        return (
            f"Messages run in batches here, at {anthropic.PREFIX}/batches; a live call is POST"
            f" {VERSION}/chat/completions. The base_url of Anthropic's client is {origin}."
        )
    meant = _meant(request, path)
    if meant:
        return f"Did you mean {meant}? Set the client's base_url to {origin}{VERSION}."
    return f"See {origin}/docs for the URLs that exist."


def _meant(request: Request, path: str) -> str | None:
    """The existing path that this one may mean: with a `/v1` added, or a prefix removed.

    None if there is none.
    """
    steps = path.split("/", MOST_PREFIXES + 1)[1:]
    if steps[0] == VERSION[1:] and steps[1:2] != [VERSION[1:]]:
        return None
    candidates = ("/".join([VERSION, *steps[skipped:]]) for skipped in range(len(steps)))
    return next((candidate for candidate in candidates if _methods(request, candidate)), None)


def _methods(request: Request, path: str) -> list[str]:
    """The methods of a path; empty if no route has it."""
    # A mount that matched has set root_path to its own path: try the routes from the app's root.
    scope = {**request.scope, "path": path, "root_path": request.scope.get("app_root_path", "")}
    return [
        method
        for method in METHODS
        if any(_takes(route, {**scope, "method": method}) for route in request.app.routes)
    ]


def _takes(route: BaseRoute, scope: Scope) -> bool:
    """Whether a route, or an included router, has the path and method of a scope."""
    # A mount matches any method, but only serves static files.
    if isinstance(route, Mount) and scope["method"] != "GET":
        return False
    return route.matches(scope)[0] == Match.FULL
