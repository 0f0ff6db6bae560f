"""Rendering of pages and of their fragments, and the headers that all of them have."""

from functools import cache
from pathlib import Path
from time import time
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from jinja2_fragments import render_block

from xalen_batch import __version__
from xalen_batch.accounts.accounts import Scope
from xalen_batch.accounts.sessions import Visitor
from xalen_batch.console import assets, words

TEMPLATES = Path(__file__).parent / "templates"
# No inline script or style, nothing from other servers, and no page that embeds these.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "style-src 'self'",
        "script-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    # Not `no-referrer`: browsers would then send `Origin: null` with forms.
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    # A page shows what belongs to one session.
    "cache-control": "no-store",
    # A fragment and the page around it have the same address.
    "vary": "HX-Request",
}
# Pages of the navigation: path, icon, name, and the scope that shows it.
NAVIGATION: list[tuple[str, str, str, Scope]] = [
    ("/console", "overview", "Overview", Scope.READ),
    ("/console/batches", "batch", "Batches", Scope.READ),
    ("/console/schedules", "moon", "Schedules", Scope.READ),
    ("/console/files", "file", "Files", Scope.READ),
    ("/console/invoices", "invoice", "Invoices", Scope.BILLING),
    ("/console/models", "backend", "Models", Scope.READ),
    ("/console/settings", "key", "Settings", Scope.READ),
]


@cache
def environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        auto_reload=False,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    made.filters |= words.FILTERS
    made.globals |= words.GLOBALS
    made.globals |= {"asset": assets.url, "version": __version__}
    return made


def show(
    request: Request,
    visitor: Visitor | None,
    template: str,
    *,
    block: str | None = None,
    status: int = 200,
    **context: Any,
) -> HTMLResponse:
    """A page; for a request of htmx only its block, if one is named.

    `visitor`: None for pages that need no session.
    """
    values = {
        "visitor": visitor,
        "navigation": [] if visitor is None else _navigation(visitor),
        "may_submit": visitor is not None and Scope.SUBMIT in visitor.caller.scopes,
        "may_bill": visitor is not None and Scope.BILLING in visitor.caller.scopes,
        "here": request.url.path,
        "now": int(time()),
        **context,
    }
    if block is not None and request.headers.get("hx-request") == "true":
        return HTMLResponse(render_block(environment(), template, block, values), status)
    return HTMLResponse(environment().get_template(template).render(values), status)


def _navigation(visitor: Visitor) -> list[tuple[str, str, str]]:
    return [
        (path, icon, name)
        for path, icon, name, scope in NAVIGATION
        if scope in visitor.caller.scopes
    ]
