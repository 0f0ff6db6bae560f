"""The Accept-Encoding field: whether it names zstd."""

import pytest

from xalen_batch.api.http import encodings


@pytest.mark.parametrize(
    ("field", "is_accepted"),
    [
        ("zstd", True),
        ("ZSTD", True),
        ("gzip, deflate, br, zstd", True),
        ("gzip,zstd;q=0.1", True),
        ("zstd ; q=1.000", True),
        ("zstd;q=0.5, identity;q=0.5", True),
        ("zstd, *;q=0", True),
        (None, False),
        ("", False),
        ("gzip, deflate", False),
        ("*", False),
        ("zstd;q=0", False),
        ("zstd;q=0.000, *", False),
        ("zstd;q=0.5, identity", False),
        ("zstd;q=nan", False),
        ("zstd;level=3", False),
        ("xzstd", False),
    ],
)
def test_zstd(field: str | None, is_accepted: bool) -> None:
    assert encodings.accepts(field, "zstd") is is_accepted
