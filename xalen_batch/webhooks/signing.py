"""Signatures of Standard Webhooks, which the SDKs of OpenAI and `standardwebhooks` verify."""

import base64
import binascii
import hashlib
import hmac
import os
from collections.abc import Sequence

from xalen_batch.errors import InvalidRequest

PREFIX = "whsec_"
KEY_BYTES = 32
# Bounds of a key that a caller brings, of the specification.
LEAST_BYTES, MOST_BYTES = 24, 64


def new_secret() -> str:
    """A random secret: standard base64 with padding, which openai-python does not repair."""
    return PREFIX + base64.b64encode(os.urandom(KEY_BYTES)).decode()


def check_secret(secret: str, param: str) -> str:
    """The secret, if it has the form of Standard Webhooks. Raises InvalidRequest."""
    try:
        key = _key(secret)
    except (ValueError, binascii.Error):
        key = b""
    if not secret.startswith(PREFIX) or not LEAST_BYTES <= len(key) <= MOST_BYTES:
        raise InvalidRequest(
            f"{param}: a secret is `{PREFIX}` and {LEAST_BYTES} to {MOST_BYTES} random bytes in"
            " standard base64 with padding. Without it, the deliveries are not signed.",
            param=param,
        )
    return secret


def sign(secret: str, id: str, timestamp: int, body: bytes) -> str:
    """The signature of a body with one secret: `v1,` and base64 of the HMAC-SHA256."""
    message = b"%s.%d.%s" % (id.encode(), timestamp, body)
    digest = hmac.new(_key(secret), message, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"


def headers(secrets: Sequence[str], id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The headers of a delivery. `secrets`: two while one rotates; none: there is no signature."""
    found = {"webhook-id": id, "webhook-timestamp": str(timestamp)}
    if secrets:
        signatures = [sign(secret, id, timestamp, body) for secret in secrets]
        found["webhook-signature"] = " ".join(signatures)
    return found


def _key(secret: str) -> bytes:
    return base64.b64decode(secret.removeprefix(PREFIX), validate=True)
