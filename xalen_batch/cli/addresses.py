"""Detects a wrong address of the API (http for https, a wrong path) by the server's answer."""

import re
import socket
import ssl
from contextlib import suppress
from http.client import BadStatusLine
from urllib.parse import urlsplit

PROBE_TIMEOUT = 3.0
# OpenSSL's reasons, from version 1.1 on, for a plain HTTP answer in place of a TLS record.
NO_TLS = {
    "WRONG_VERSION_NUMBER",
    "UNKNOWN_PROTOCOL",
    "HTTP_REQUEST",
    "RECORD_LAYER_FAILURE",
    "PACKET_LENGTH_TOO_LONG",
}
# First bytes of a TLS record: an alert, a handshake.
TLS_RECORDS = (b"\x15", b"\x16")


def wrong_scheme(base_url: str, reason: object) -> str | None:
    """The message if the first request failed because of the scheme or the certificate; else None.

    It names the address to use.
    """
    address = urlsplit(base_url)
    match reason:
        case ssl.SSLCertVerificationError():
            return (
                f"The certificate of {address.netloc} is not accepted: {reason.verify_message}."
                " Name the file of the authority that signed it in SSL_CERT_FILE, or use the host"
                " name that it was made for."
            )
        case ssl.SSLError() if reason.reason in NO_TLS:
            return _use("http", base_url)
        case ConnectionResetError() | BadStatusLine() if is_tls_server(base_url):
            return _use("https", base_url)
    return None


def is_tls_server(base_url: str) -> bool:
    """Whether the server of an http:// address answers a TLS ClientHello with a TLS record."""
    address = urlsplit(base_url)
    if address.scheme != "http":
        return False
    received, sent = ssl.MemoryBIO(), ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        ssl.create_default_context().wrap_bio(
            received, sent, server_hostname=address.hostname
        ).do_handshake()
    try:
        with socket.create_connection(
            (address.hostname or "", address.port or 80), PROBE_TIMEOUT
        ) as connection:
            connection.sendall(sent.read())
            return connection.recv(1) in TLS_RECORDS
    except OSError:
        return False


def hint(base_url: str, status: int, told: str | None, code: str | None) -> str:
    """The correct address, if a wrong one explains an error; else an empty string.

    `told` and `code`: the message and code in the API's error envelope. `told` is None if there was
    no envelope, so that another server answered.
    """
    if told is None and status == 400 and is_tls_server(base_url):
        return f" {_use('https', base_url)}"
    address = urlsplit(base_url)
    root = re.match(r".*?/v1(?=/)", address.path)
    is_wrong = root or told is None or (code == "unknown_url" and "/v1" not in told)
    if status == 404 and is_wrong and not address.path.endswith("/v1"):
        return (
            " The address of an API ends in /v1: try"
            f" {address.scheme}://{address.netloc}{root[0] if root else '/v1'}"
        )
    return " Is the address right?" if told is None else ""


def _use(scheme: str, base_url: str) -> str:
    address = urlsplit(base_url)
    return (
        f"{address.netloc} speaks {scheme}, not {address.scheme}. Use"
        f" {scheme}://{address.netloc}{address.path} as the address."
    )
