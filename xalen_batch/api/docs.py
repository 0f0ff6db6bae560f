"""The API's own pages: its description, and Swagger UI over it, from files that come with the package."""

import json
from functools import cache
from pathlib import Path

from fastapi import FastAPI, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

ASSETS = Path(__file__).parent / "assets"
PATH = "/docs/assets"
DESCRIPTION = "/openapi.json"


def install(app: FastAPI) -> None:
    """Serve /docs without a request to anyone else, and the description as bytes that all its readers share."""
    app.mount(PATH, StaticFiles(directory=ASSETS))
    page = get_swagger_ui_html(
        openapi_url=DESCRIPTION,
        title=app.title,
        swagger_js_url=f"{PATH}/swagger-ui-bundle.js",
        swagger_css_url=f"{PATH}/swagger-ui.css",
        swagger_favicon_url=f"{PATH}/favicon.png",
        # Its default asks a public server to validate the description.
        swagger_ui_parameters={"validatorUrl": None},
    )

    @cache
    def description() -> bytes:
        return json.dumps(app.openapi()).encode()

    @app.get(DESCRIPTION, include_in_schema=False)
    def openapi() -> Response:
        return Response(description(), media_type="application/json")

    @app.get("/docs", include_in_schema=False)
    def docs() -> HTMLResponse:
        return page
