"""The secret of a key: `xln_test_` or `xln_live_`, 32 random digits of 62, and six digits that are
the checksum of these.

By its checksum a scanner tells a leaked key from what only looks like one, and the API refuses a
mistyped one without asking the database. Keys that are older than the checksum end without one.
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
    digits = "".join(secrets.choice(BASE62) for _ in range(RANDOM_DIGITS))
    return PREFIXES[livemode] + digits + checksum(digits)


def checksum(digits: str) -> str:
    """CRC-32 in base 62, the most significant digit first."""
    left, found = zlib.crc32(digits.encode()), ""
    for _ in range(CHECKSUM_DIGITS):
        left, digit = divmod(left, len(BASE62))
        found = BASE62[digit] + found
    return found


def is_possible(text: str) -> bool:
    """Whether it can be a key of any server: its form and its checksum, if it has one, are right."""
    match = FORM.fullmatch(text)
    return match is not None and match[2] in (None, checksum(match[1]))


def shown(secret: str) -> str:
    """What may be shown of it, to tell keys apart: `xln_test_1a2B`."""
    return secret[: len(PREFIXES[False]) + SHOWN_DIGITS]


def digest(secret: str) -> bytes:
    """What is kept of it.

    Its digits are random, so there is nothing that a slow hash would protect.
    """
    return hashlib.sha256(secret.encode()).digest()
