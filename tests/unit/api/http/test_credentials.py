"""The key of a request, in the header of any of the clients."""

import pytest

from xalen_batch.api.http.credentials import as_bearer

BEARER = (b"authorization", b"Bearer xln_test_1")
OTHER = (b"accept", b"*/*")


@pytest.mark.parametrize("name", [b"api-key", b"x-api-key"])
def test_a_bare_key_becomes_a_bearer(name: bytes) -> None:
    sent = (name, b"xln_test_1")
    assert as_bearer([OTHER, sent]) == [OTHER, sent, BEARER]


def test_an_authorization_header_counts_alone() -> None:
    sent = [(b"api-key", b"xln_test_2"), BEARER]
    assert as_bearer(sent) == sent


@pytest.mark.parametrize("headers", [[OTHER], [OTHER, (b"api-key", b"")]])
def test_without_a_key_nothing_is_added(headers: list[tuple[bytes, bytes]]) -> None:
    assert as_bearer(headers) == headers
