"""The Accept-Encoding field: whether it asks for zstd alone."""

import pytest

from xalen_batch.api.http import encodings


@pytest.mark.parametrize(
    ("field", "is_asked_for"),
    [
        ("zstd", True),
        ("ZSTD", True),
        ("zstd ; q=1.000", True),
        ("zstd;q=0.5, identity;q=0.5", True),
        ("zstd, *;q=0", True),
        ("zstd, gzip;q=0", True),
        (",zstd,", True),
        (None, False),
        ("", False),
        # The lists of curl, aiohttp and browsers.
        ("deflate, gzip, br, zstd", False),
        ("gzip, deflate, zstd", False),
        ("gzip, deflate", False),
        ("zstd, gzip;q=0.1", False),
        ("*", False),
        ("zstd, *", False),
        ("zstd;q=0", False),
        ("zstd;q=0.000, *", False),
        ("zstd;q=0.5, identity", False),
        ("zstd;q=nan", False),
        ("zstd;level=3", False),
        ("xzstd", False),
    ],
)
def test_zstd(field: str | None, is_asked_for: bool) -> None:
    assert encodings.asks_for(field, "zstd") is is_asked_for
