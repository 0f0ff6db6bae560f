"""Pages of other origins: the preflight request of a browser, and the headers of each answer."""

from collections.abc import Callable

import pytest
from pydantic import ValidationError
from starlette.testclient import TestClient

from xalen_batch.api import app
from xalen_batch.config import Settings

PAGE = "https://app.example.com"
# What a browser sends before a POST of the openai package for JavaScript.
PREFLIGHT = {
    "origin": PAGE,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,x-stainless-lang",
}


def served(configure: Callable[..., None], origins: str) -> TestClient:
    configure(cors_origins=origins)
    return TestClient(app.create_app(), raise_server_exceptions=False)


def test_a_preflight_request_needs_no_key(configure: Callable[..., None]) -> None:
    client = served(configure, f"http://localhost:3000, {PAGE}")
    for path in ("/v1/batches", "/v1/chat/completions", "/openai/files"):
        answer = client.options(path, headers=PREFLIGHT)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == PAGE
        allowed = answer.headers["access-control-allow-headers"].split(",")
        assert {"authorization", "x-stainless-lang"} <= {each.strip() for each in allowed}
        assert "DELETE" in answer.headers["access-control-allow-methods"]


def test_every_answer_names_the_page_and_the_headers_that_it_may_read(
    configure: Callable[..., None],
) -> None:
    client = served(configure, PAGE)
    for path, status in (("/livez", 200), ("/v1/nothing", 404)):
        answer = client.get(path, headers={"origin": PAGE})
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == PAGE
        exposed = answer.headers["access-control-expose-headers"]
        assert {"x-request-id", "retry-after", "content-range", "etag"} <= set(exposed.split(", "))
        assert "access-control-allow-credentials" not in answer.headers


def test_an_error_of_the_server_names_the_page_too(
    configure: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(cors_origins=PAGE)
    made = app.create_app()

    @made.get("/breaks", include_in_schema=False)
    def breaks() -> None:
        raise ZeroDivisionError

    client = TestClient(made, raise_server_exceptions=False)
    answer = client.get("/breaks", headers={"origin": PAGE})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (500, PAGE)


def test_other_pages_get_nothing(configure: Callable[..., None]) -> None:
    for origins in ("", "https://other.example.com"):
        client = served(configure, origins)
        for answer in (
            client.options("/v1/batches", headers=PREFLIGHT),
            client.get("/livez", headers={"origin": PAGE}),
        ):
            assert "access-control-allow-origin" not in answer.headers


def test_a_star_admits_every_page(configure: Callable[..., None]) -> None:
    answer = served(configure, "*").options("/v1/batches", headers=PREFLIGHT)
    assert answer.headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize(
    "origin",
    ["app.example.com", "https://app.example.com/", "https://App.example.com", "https://a.b:c"],
)
def test_what_no_browser_sends_is_no_origin(origin: str) -> None:
    with pytest.raises(ValidationError, match="is not an origin"):
        Settings(cors_origins=origin)
