"""Every path and query parameter of the API's description, at the ends of its range and beyond:
never a 500.
"""

import json
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode
from uuid import UUID

import pytest

from tests import factories
from tests.described import description
from tests.integration.conftest import Api
from tests.waiting import PATIENCE
from xalen_batch import ids

# Bytes of UTF-8, or not: a lone surrogate, an overlong slash, a byte that begins nothing.
TEXTS: tuple[bytes, ...] = (
    *(
        b"",
        b"a\x00b",
        b"\xff",
        b"\xed\xa0\x80",
        b"\xc0\xaf",
        "\u2028\u202e\U0010ffff".encode(),
        b"%",
        b"../../x",
        b"x" * 5_000,
    ),
    *(
        ids.render(prefix, UUID(int=2**128 - 1)).encode()
        for prefix in ("file", "batch", "sched", "run", "key")
    ),
)
NUMBERS = (
    b"-1",
    b"0",
    b"1e400",
    b"NaN",
    *(str(number).encode() for number in (2**31, 2**63, 10**400)),
)
MOMENTS = (
    *(
        b"0001-01",
        b"1000-01",
        b"2026-13",
        b"9999-12",
        "\u0662\u0660\u0662\u0666-\u0660\u0661".encode(),
    ),
    *(b"9999-12-31T23:59:59-14:00", b"0001-01-01T00:00:00+14:00"),
)


class Parameter(NamedTuple):
    method: str
    path: str
    name: str
    place: str
    schema: dict[str, Any]

    @property
    def values(self) -> Iterator[bytes]:
        yield from TEXTS
        yield from NUMBERS
        yield from MOMENTS
        for limit in ("minimum", "maximum"):
            for of in (self.schema, *self.schema.get("anyOf", ())):
                if limit in of:
                    yield from (str(of[limit] + more).encode() for more in (-1, 0, 1))

    def address(self, value: bytes, names: dict[str, str]) -> str:
        path = self.path
        if self.place == "path":
            path = path.replace("{" + self.name + "}", quote(value, safe=""))
        for name, known in names.items():
            path = path.replace("{" + name + "}", known)
        return path + ("?" + urlencode({self.name: value}) if self.place == "query" else "")


def parameters() -> Iterator[Parameter]:
    for path, methods in description()["paths"].items():
        for method, operation in methods.items():
            for parameter in operation.get("parameters", ()):
                if parameter["in"] in ("path", "query"):
                    yield Parameter(
                        method.upper(),
                        path,
                        parameter["name"],
                        parameter["in"],
                        parameter["schema"],
                    )


ALL = list(parameters())


@pytest.fixture
def names(api: Api) -> dict[str, str]:
    """An object for each path parameter that is not the one under test."""
    file = api.upload(factories.jsonl([factories.chat_line("a")]))["id"]
    body = {"input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    batch = api.ask("POST", "/v1/batches", body).json["id"]
    unknown = {
        name: ids.render(prefix, UUID(int=7))
        for name, prefix in (("schedule_id", "sched"), ("run_id", "run"), ("key_id", "key"))
    }
    return unknown | {
        "file_id": file,
        "batch_id": batch,
        "month": "2026-11",
        "model": factories.CHAT_MODEL,
    }


def test_the_description_names_them() -> None:
    assert {"month", "limit", "after", "batch_id", "file_id", "schedule_id"} <= {
        parameter.name for parameter in ALL
    }


# The fields of an error in OpenAI's shape, and in Anthropic's.
ERRORS = ({"error"}, {"type", "error", "request_id"})


@pytest.mark.parametrize(
    "parameter", ALL, ids=lambda parameter: f"{parameter.method} {parameter.path} {parameter.name}"
)
def test_at_the_ends_of_its_range_it_is_no_500(
    api: Api, names: dict[str, str], parameter: Parameter
) -> None:
    connection = HTTPConnection("127.0.0.1", api.port, timeout=PATIENCE)
    failed = []
    for value in parameter.values:
        connection.request(
            parameter.method,
            parameter.address(value, names),
            headers={"authorization": f"Bearer {api.key}"},
        )
        answer = connection.getresponse()
        body = answer.read()
        if answer.status >= 500 or (answer.status >= 400 and set(json.loads(body)) not in ERRORS):
            failed.append((value[:60], answer.status, body[:200]))
    connection.close()
    assert failed == []
