"""Secrets of API keys: a prefix for the mode, 32 random base 62 digits, and a checksum of six.

The prefix is `xln_test_` or `xln_live_`. By the checksum, secret scanners recognize a leaked key,
and the API refuses a mistyped one without a query. Keys older than the checksum have none.
"""

import hashlib
import re
import secrets
import string
import zlib

BASE62 = string.digits + string.ascii_uppercase + string.ascii_lowercase
RANDOM_DIGITS = 32
CHECKSUM_DIGITS = 6
SHOWN_DIGITS = 4
PREFIXES = {False: "xln_test_", True: "xln_live_"}

FORM = re.compile(
    f"xln_(?:test|live)_([0-9A-Za-z]{{{RANDOM_DIGITS}}})([0-9A-Za-z]{{{CHECKSUM_DIGITS}}})?"
)


def new(livemode: bool) -> str:
    """A random secret."""
    digits = "".join(secrets.choice(BASE62) for _ in range(RANDOM_DIGITS))
    return PREFIXES[livemode] + digits + checksum(digits)


def checksum(digits: str) -> str:
    """The CRC-32 of the digits in base 62, the most significant digit first."""
    left, found = zlib.crc32(digits.encode()), ""
    for _ in range(CHECKSUM_DIGITS):
        left, digit = divmod(left, len(BASE62))
        found = BASE62[digit] + found
    return found


def is_possible(text: str) -> bool:
    """Whether a text has the form of a key, and the right checksum if it has one."""
    match = FORM.fullmatch(text)
    return match is not None and match[2] in (None, checksum(match[1]))


def shown(secret: str) -> str:
    """The beginning of a secret that lists show, to tell keys apart: `xln_test_1a2B`."""
    return secret[: len(PREFIXES[False]) + SHOWN_DIGITS]


def digest(secret: str) -> bytes:
    """The SHA-256 of a secret, which is stored.

    The secret has 190 random bits, so a slow password hash would protect it no better.
    """
    return hashlib.sha256(secret.encode()).digest()
