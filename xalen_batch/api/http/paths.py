"""The address of a request: its normal form, the methods that it has, and the remedy if no route
takes it.
"""

import re

from starlette.requests import Request
from starlette.routing import BaseRoute, Match, Mount
from starlette.types import Scope

VERSION = "/v1"
METHODS = ("DELETE", "GET", "PATCH", "POST", "PUT")
SLASHES = re.compile("//+")
# The key of an ASGI scope that holds the method as it was sent.
SENT_METHOD = "xalen.method"
# Prefixes of a path that are tried as a wrong base URL, such as those of
# `/openai/deployments/NAME/v1`.
MOST_PREFIXES = 6
# What OpenAI's clients, Cohere's and Anthropic's send as live calls.
LIVE = re.compile(
    r"(/v\d+)?/(chat/completions|completions|responses|embeddings|rerank|score|messages|moderations)"
)


def normal(path: str) -> str:
    """A path without repeated and trailing slashes."""
    return SLASHES.sub("/", path).rstrip("/") or "/" if path.endswith("/") or "//" in path else path


def method(scope: Scope) -> str:
    """The method as the client sent it."""
    sent: str = scope.get(SENT_METHOD, scope["method"])
    return sent


def allowed(request: Request) -> list[str]:
    """Every method that a request's path has, sorted."""
    methods = _methods(request, request.url.path)
    return sorted([*methods, "HEAD"] if "GET" in methods else methods)


def hint(request: Request) -> str:
    """What to do about a path that no route has: another base URL, a batch in the place of a live
    call, or the docs.
    """
    path = request.url.path
    origin = str(request.base_url).rstrip("/")
    if live := LIVE.fullmatch(
        path.removeprefix(VERSION) if path.startswith(VERSION + VERSION) else path
    ):
        return _as_batch(live[2], origin)
    if meant := _meant(request, path):
        return f"Did you mean {meant}? Set the client's base_url to {origin}{VERSION}."
    return f"See {origin}/docs for the URLs that exist."


def _as_batch(call: str, origin: str) -> str:
    if call not in ("chat/completions", "rerank"):
        return (
            f"This server runs batches, not live calls, of {VERSION}/chat/completions and"
            f" {VERSION}/rerank; it has no {call}. See {origin}/docs."
        )
    line = (
        f'{{"custom_id": "1", "method": "POST", "url": "{VERSION}/{call}", "body": <the body of'
        " this request>}"
    )
    return (
        f"This server runs batches, not live calls. Write the line {line} to a file,"
        f" requests.jsonl, and run it: `xalen-batch run requests.jsonl`, or POST {VERSION}/files"
        f" and {VERSION}/batches. See {origin}/docs."
    )


def _meant(request: Request, path: str) -> str | None:
    """The path of a route that lacks its `/v1` here, has it twice, or has another prefix before it."""
    steps = path.split("/", MOST_PREFIXES + 1)[1:]
    if steps[0] == VERSION[1:] and steps[1:2] != [VERSION[1:]]:
        return None
    candidates = ("/".join([VERSION, *steps[skipped:]]) for skipped in range(len(steps)))
    return next((candidate for candidate in candidates if _methods(request, candidate)), None)


def _methods(request: Request, path: str) -> list[str]:
    """The methods that a path has; none: no route takes it."""
    # A mount that took the path has made its own the root.
    scope = {**request.scope, "path": path, "root_path": request.scope.get("app_root_path", "")}
    return [
        method
        for method in METHODS
        if any(_takes(route, {**scope, "method": method}) for route in request.app.routes)
    ]


def _takes(route: BaseRoute, scope: Scope) -> bool:
    """Whether a route, or an included router, takes a method of a path."""
    # A mount, of static files, matches any method.
    return route.matches(scope)[0] == Match.FULL and not (
        isinstance(route, Mount) and scope["method"] != "GET"
    )
