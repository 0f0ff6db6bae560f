"""The style sheet, the icons and the scripts of the pages: files of the package.

`static/htmx.js` is `dist/htmx.min.js` of the npm package `htmx.org` 2.0.11, SHA-256
d6fdc75f204e6bdefa99b69bf1e6d4ac69b8a364f77929f45c13476b4000f717, under the licence in
`htmx.LICENSE`.
"""

import hashlib
from functools import cache
from pathlib import Path

from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

FOLDER = Path(__file__).parent / "static"
PATH = "/console/static"


@cache
def url(name: str) -> str:
    """The address of an asset, which changes with its content."""
    digest = hashlib.sha256((FOLDER / name).read_bytes()).hexdigest()
    return f"{PATH}/{name}?v={digest[:12]}"


class Assets(StaticFiles):
    """The files of the folder; a browser keeps one whose address has its digest."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        answer = await super().get_response(path, scope)
        versioned = scope["query_string"].startswith(b"v=")
        answer.headers["cache-control"] = (
            "public, max-age=31536000, immutable" if versioned else "no-cache"
        )
        answer.headers["x-content-type-options"] = "nosniff"
        return answer
