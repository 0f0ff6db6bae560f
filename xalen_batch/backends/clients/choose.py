"""Choose the HTTP client for a model server's URL."""

import ipaddress
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from xalen_batch.backends.buffer import Buffer
from xalen_batch.backends.clients.contract import Client, Limits
from xalen_batch.backends.clients.full import FullClient
from xalen_batch.backends.clients.plain import PlainClient


def client_for(
    url: str,
    headers: Mapping[str, str],
    limits: Limits,
    buffer: Buffer,
    *,
    connections: int,
    ca_certificates: Sequence[bytes] = (),
) -> Client:
    """Return the client for the server at `url`.

    PlainClient for plain HTTP without a proxy, credentials or a query; otherwise FullClient, which
    keeps up to `connections` idle connections and trusts `ca_certificates` (PEM) besides the usual
    ones. Raises ConfigError for a certificate that cannot be used.
    """
    parts = urlsplit(url)
    has_proxy = (
        not is_loopback(url)
        and {"http", "all"} & getproxies().keys()
        and not proxy_bypass(parts.hostname or "")
    )
    if parts.scheme == "http" and not (has_proxy or parts.username or parts.query):
        return PlainClient(url, headers, limits, buffer)
    return full_client_for(
        url, headers, limits, buffer, connections=connections, ca_certificates=ca_certificates
    )


def full_client_for(
    url: str,
    headers: Mapping[str, str],
    limits: Limits,
    buffer: Buffer,
    *,
    connections: int,
    ca_certificates: Sequence[bytes] = (),
) -> FullClient:
    """Return a FullClient for the server at `url`, for streams as well."""
    return FullClient(
        url,
        headers,
        limits,
        buffer,
        is_direct=is_loopback(url),
        connections=connections,
        ca_certificates=ca_certificates,
    )


def is_loopback(url: str) -> bool:
    """Whether the URL's host is this machine, which is never reached through a proxy."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
