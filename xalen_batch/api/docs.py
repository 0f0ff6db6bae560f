"""The API's own pages: a summary at `/`, the OpenAPI description, and Swagger UI, whose assets are
in the package.
"""

import html
import json
from functools import cache
from pathlib import Path

from fastapi import FastAPI, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse
from starlette.staticfiles import StaticFiles

from xalen_batch.api.http import paths
from xalen_batch.api.http.downloads import constant
from xalen_batch.config import settings

ASSETS = Path(__file__).parent / "assets"
PATH = "/docs/assets"
DESCRIPTION = "/openapi.json"
PAGE = """<!doctype html><title>{name}</title><p>{name} {version}: {description}
The base_url of a client is <code>{base_url}</code>. See the <a href="/docs">documentation</a>
and the <a href="/openapi.json">OpenAPI description</a>.</p>
"""


def install(app: FastAPI) -> None:
    """Add the pages. They load nothing from other servers; the description is rendered once."""
    app.mount(PATH, StaticFiles(directory=ASSETS))
    page = get_swagger_ui_html(
        openapi_url=DESCRIPTION,
        title=app.title,
        swagger_js_url=f"{PATH}/swagger-ui-bundle.js",
        swagger_css_url=f"{PATH}/swagger-ui.css",
        swagger_favicon_url=f"{PATH}/favicon.png",
        # The default sends the description to a public validator.
        swagger_ui_parameters={"validatorUrl": None},
    )

    @cache
    def description() -> bytes:
        return json.dumps(app.openapi()).encode()

    @app.get(DESCRIPTION, include_in_schema=False)
    def openapi(request: Request) -> Response:
        return constant(request, description())

    @app.get("/", include_in_schema=False)
    @app.get(paths.VERSION, include_in_schema=False)
    def root(request: Request) -> Response:
        origin = str(request.base_url).rstrip("/")
        about = {
            "object": "service",
            "name": app.title,
            "version": app.version,
            "description": "Batch inference behind the OpenAI Files and Batches API.",
            "base_url": f"{origin}{paths.VERSION}",
            "docs": f"{origin}/docs",
            "openapi": f"{origin}{DESCRIPTION}",
        }
        headers = {"vary": "accept"}
        if "text/html" not in request.headers.get("accept", ""):
            return JSONResponse(about, headers=headers)
        if settings().console == "on":
            return RedirectResponse("/console", 303, headers=headers)
        shown = {name: html.escape(value) for name, value in about.items()}
        return HTMLResponse(PAGE.format_map(shown), headers=headers)

    @app.get("/docs", include_in_schema=False)
    def docs() -> HTMLResponse:
        return page
