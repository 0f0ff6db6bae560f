"""Where webhooks may lead: checks of URLs, and of the addresses that their names resolve to.

A URL comes from a caller, so without these checks it could reach what only this machine reaches:
its own services, the network inside, the cloud's metadata (server-side request forgery).
"""

import re
import socket
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import NamedTuple
from urllib.parse import urlsplit

from xalen_batch.config import settings
from xalen_batch.errors import QUOTED_CHARS, InvalidRequest

LONGEST_URL = 2_048
DEFAULT_PORTS = {"https": 443, "http": 80}
# Ports below belong to other protocols.
FIRST_FREE_PORT = 1_024
# Characters of a URL: without those that parsers read in different ways, such as `\` and tabs.
_URL = re.compile(r"[!#-;=?-Z\[\]_a-z~]+")
# Names of other letters have a spelling with `xn--`.
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
LONGEST_NAME = 253

# Networks of IPv4 that are not the internet, by IANA's registry of special addresses.
_REFUSED_V4 = tuple(
    map(
        ip_network,
        (
            *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
            *("172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24"),
            *("192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24"),
            *("224.0.0.0/4", "240.0.0.0/4"),
            # Azure's metadata, on a public address.
            "168.63.129.16/32",
        ),
    )
)
# The internet of IPv6, and what in it is not: protocol assignments with Teredo, documentation,
# 6to4, whose addresses have an IPv4 address in them.
_PUBLIC_V6 = IPv6Network("2000::/3")
_REFUSED_V6 = tuple(map(IPv6Network, ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")))
# Addresses that are an IPv4 address in their last 32 bits: mapped, and NAT64.
_COATS = tuple(map(IPv6Network, ("::ffff:0:0/96", "64:ff9b::/96")))
# The interface identifier of ISATAP, before an IPv4 address.
_ISATAP = (0x00005EFE, 0x02005EFE)

Address = IPv4Address | IPv6Address


class Refused(Exception):
    """A name that leads to no address, or to one that webhooks may not reach. `str()` says why."""


class Target(NamedTuple):
    """The parts of a checked URL. `host`: a name, or an address without brackets."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == DEFAULT_PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{host}{port}{self.path}"

    @property
    def literal(self) -> Address | None:
        """The address if the host is one."""
        try:
            return ip_address(self.host)
        except ValueError:
            return None


def check(url: str, param: str = "url") -> Target:
    """The parts of a URL that webhooks may have. Raises InvalidRequest.

    Names are resolved at each attempt, and not here: they may lead elsewhere by then.
    """
    try:
        target = _parsed(url)
    except ValueError as error:
        raise InvalidRequest(
            f"{param}: {url[:QUOTED_CHARS]!r} {error}.", param=param, code="invalid_webhook_url"
        ) from None
    address = target.literal
    if address is not None and not is_allowed(address):
        raise InvalidRequest(
            f"{param}: {target.host} is not an address of the internet. Name a receiver that this"
            " server reaches over the internet, or ask its operator for"
            " XALEN_WEBHOOK_ALLOWED_NETWORKS.",
            param=param,
            code="webhook_address_refused",
        )
    return target


def stored(url: str) -> Target:
    """The parts of a stored URL. Raises Refused if the settings do not allow it any more."""
    try:
        return check(url)
    except InvalidRequest as error:
        raise Refused(error.message.rstrip(".")) from None


def _parsed(url: str) -> Target:
    """Raises ValueError, whose text follows the URL in a message."""
    if len(url) > LONGEST_URL:
        raise ValueError(f"has more than {LONGEST_URL:,} characters")
    if not url:
        raise ValueError("is empty. Send a URL such as https://hooks.example.com/xalen")
    if not _URL.fullmatch(url):
        raise ValueError("has a character that a URL cannot have. Escape it, as in `%20`")
    parts = urlsplit(url)
    scheme = parts.scheme.lower()
    if scheme != "https" and not (scheme == "http" and settings().webhook_allow_http):
        remedy = "Only the operator can allow `http://`, with XALEN_WEBHOOK_ALLOW_HTTP"
        raise ValueError(
            "does not begin with `https://`" + (f". {remedy}" if scheme == "http" else "")
        )
    if "@" in parts.netloc:
        raise ValueError("names a user. Leave the part before the `@` out")
    if "#" in url:
        raise ValueError("has a fragment. Leave the part from the `#` on out")
    host = _host(parts.netloc)
    port = _port(parts.netloc, scheme)
    query = f"?{parts.query}" if parts.query else ""
    return Target(scheme, host, port, (parts.path or "/") + query)


def _host(netloc: str) -> str:
    bracketed = re.fullmatch(r"\[([0-9a-fA-F:.]+)\](?::\d*)?", netloc)
    if bracketed:
        try:
            return str(IPv6Address(bracketed[1]))
        except ValueError:
            raise ValueError("has no valid IPv6 address in its brackets") from None
    name = netloc.partition(":")[0].lower()
    labels = name.split(".")
    if len(name) > LONGEST_NAME or not all(map(_LABEL.fullmatch, labels)):
        raise ValueError("has no valid host. Write a name such as hooks.example.com")
    if re.fullmatch(r"\d+|0x[0-9a-f]*", labels[-1]):
        # Anything else that ends in a number is another spelling of an IPv4 address: `127.1`,
        # `2130706433`, `0x7f.1`, `0177.0.0.1`.
        try:
            return str(IPv4Address(name))
        except ValueError:
            raise ValueError("has no valid IPv4 address. Write it as 192.0.2.1") from None
    return name


def _port(netloc: str, scheme: str) -> int:
    _, colon, digits = netloc.rpartition("]")[2].partition(":")
    if not colon or not digits:
        return DEFAULT_PORTS[scheme]
    if not re.fullmatch(r"[1-9]\d{0,4}", digits) or int(digits) > 65_535:
        raise ValueError("has no valid port")
    port = int(digits)
    if port < FIRST_FREE_PORT and port not in DEFAULT_PORTS.values():
        raise ValueError(
            f"names port {port}, which belongs to another protocol. Use 443, or one from"
            f" {FIRST_FREE_PORT:,} on"
        )
    return port


def is_allowed(address: Address) -> bool:
    """Whether a webhook may reach an address: it is of the internet, or the operator allows it."""
    if any(address in network for network in settings().webhook_allowed_networks):
        return True
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _REFUSED_V4)
    if any(address in coat for coat in _COATS):
        return is_allowed(IPv4Address(int(address) & 0xFFFFFFFF))
    if int(address) >> 32 & 0xFFFFFFFF in _ISATAP:
        return False
    return address in _PUBLIC_V6 and not any(address in network for network in _REFUSED_V6)


def resolve(target: Target) -> Sequence[str]:
    """The addresses of a target, all of which webhooks may reach. Raises Refused.

    One address that is not allowed refuses the name: the next lookup could give it alone.
    """
    literal = target.literal
    if literal is not None:
        found = [str(literal)]
    else:
        try:
            answers = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
        except OSError:
            raise Refused(f"the name {target.host} does not resolve") from None
        found = list(dict.fromkeys(str(answer[4][0]) for answer in answers))
    for address in found:
        # An address with a zone, `fe80::1%eth0`, is link-local.
        if "%" in address or not is_allowed(ip_address(address)):
            raise Refused(
                f"{target.host} leads to {address}, which is not an address of the internet"
            )
    return found
