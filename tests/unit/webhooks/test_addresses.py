"""URLs and addresses that webhooks may have, and hostile ones that they may not."""

import socket
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

import pytest

from xalen_batch.errors import InvalidRequest
from xalen_batch.webhooks import addresses
from xalen_batch.webhooks.addresses import Refused

Configure = Callable[..., None]


@pytest.mark.parametrize(
    ("url", "sent"),
    [
        ("https://example.com", "https://example.com/"),
        ("HTTPS://Hooks.Example.COM/A?b=%20c", "https://hooks.example.com/A?b=%20c"),
        ("https://example.com:8443/x@y", "https://example.com:8443/x@y"),
        ("https://example.com:443/", "https://example.com/"),
        ("https://xn--bcher-kva.example/", "https://xn--bcher-kva.example/"),
        ("https://under_score.example/", "https://under_score.example/"),
        ("https://8.8.8.8/hook", "https://8.8.8.8/hook"),
        ("https://[2606:4700::6810:84E5]/", "https://[2606:4700::6810:84e5]/"),
        ("https://[2606:4700::1]:8443/", "https://[2606:4700::1]:8443/"),
    ],
)
def test_a_url_is_sent_to_in_one_spelling(url: str, sent: str) -> None:
    assert addresses.check(url).url == sent


# What a caller might try, by the part of it that is wrong.
HOSTILE_URLS = {
    "scheme": [
        "",
        "example.com/hook",
        "//example.com",
        "http://example.com/",
        "ftp://example.com/",
        "file:///etc/passwd",
        "gopher://example.com:70/",
        "javascript:alert(1)",
        "https:example.com",
    ],
    "characters": [
        " https://example.com/",
        "https://example.com/ ",
        "https://example.com/a b",
        "https://exa\tmple.com/",
        "https://example.com\r\nHost: localhost/",
        "https://example.com\\@127.0.0.1/",
        "https://example.com/\0",
        "https://bücher.example/",
        # Full-width digits and dots, which IDNA folds into ASCII.
        "https://\uff11\uff12\uff17.0.0.1/",
        "https://127\u30020\u30020\u30021/",
        "https://\u24dbocalhost/",
        "https://example.com/{id}",
        "https://example.com/" + "a" * 2_048,
    ],
    "user": [
        "https://user@example.com/",
        "https://user:password@example.com/",
        "https://example.com:443@127.0.0.1/",
        "https://@example.com/",
    ],
    "fragment": ["https://example.com/#a", "https://example.com#@127.0.0.1/"],
    "host": [
        "https://",
        "https:///path",
        "https://./",
        "https://example.com./",
        "https://example..com/",
        "https://-a.example/",
        "https://%31%32%37.0.0.1/",
        "https://exam%70le.com/",
        "https://" + "a" * 64 + ".example/",
        "https://" + ".".join(["a" * 60] * 5) + "/",
        "https://[::1/",
        "https://[fe80::1%25eth0]/",
        "https://[127.0.0.1]/",
        "https://[::1]extra/",
        "https://a[::1]/",
    ],
    "spelling of IPv4": [
        "https://2130706433/",
        "https://0x7f000001/",
        "https://0x7f.0.0.1/",
        "https://0177.0.0.1/",
        "https://127.1/",
        "https://127.0.1/",
        "https://0/",
        "https://1.2.3.4.5/",
        "https://127.0.0.01/",
        "https://256.1.1.1/",
        "https://example.0x/",
        "https://127.0.0.1./",
    ],
    "port": [
        "https://example.com:0/",
        "https://example.com:65536/",
        "https://example.com:99999999999999999999/",
        "https://example.com:022/",
        "https://example.com:-1/",
        "https://example.com:8443:443/",
        "https://example.com:22/",
        "https://example.com:25/",
        "https://example.com:1023/",
        "https://[::1]:port/",
    ],
}


@pytest.mark.parametrize(
    ("part", "url"), [(part, url) for part, urls in HOSTILE_URLS.items() for url in urls]
)
def test_a_hostile_url_is_refused_before_anything_is_resolved(
    part: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", None)
    with pytest.raises(InvalidRequest) as raised:
        addresses.check(url, "webhook.url")
    assert (raised.value.param, raised.value.code) == ("webhook.url", "invalid_webhook_url")


def test_plain_http_is_a_setting(configure: Configure) -> None:
    configure(webhook_allow_http=True)
    assert addresses.check("http://example.com/a").url == "http://example.com/a"
    assert addresses.check("http://example.com:8080/a").url == "http://example.com:8080/a"


def test_a_refused_http_url_names_the_setting_and_an_empty_one_says_that_it_is_empty() -> None:
    with pytest.raises(InvalidRequest, match="with XALEN_WEBHOOK_ALLOW_HTTP"):
        addresses.check("http://example.com/a")
    with pytest.raises(InvalidRequest, match="'' is empty"):
        addresses.check("")


# Addresses that no webhook may reach, by the reason.
HOSTILE_ADDRESSES = [
    *("0.0.0.0", "0.1.2.3", "127.0.0.1", "127.255.255.254"),
    *("10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1"),
    # Cloud metadata, carrier-grade NAT, protocol assignments, benchmarks, documentation.
    *("169.254.169.254", "100.64.0.1", "100.100.100.200", "192.0.0.192", "168.63.129.16"),
    *("198.18.0.1", "192.0.2.1", "198.51.100.1", "203.0.113.1", "192.88.99.1"),
    # Multicast, reserved, broadcast.
    *("224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255"),
    *("::", "::1", "fe80::1", "fec0::1", "fc00::1", "fd00:ec2::254", "ff02::1"),
    *("2001:db8::1", "3fff::1", "100::1", "5f00::1", "4000::1"),
    # An IPv4 address in a coat: mapped, compatible, NAT64, local NAT64, 6to4, Teredo, ISATAP.
    *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:a9fe:a9fe", "::127.0.0.1"),
    *("64:ff9b::127.0.0.1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::8.8.8.8"),
    *("2002:7f00:1::1", "2002:808:808::1", "2001:0:808:808::1", "2001:0:4136:e378::80ff:fffe"),
    *("2606:4700::5efe:127.0.0.1", "2606:4700::200:5efe:10.0.0.1"),
]
PUBLIC = ["8.8.8.8", "1.1.1.1", "172.32.0.1", "2606:4700::1111", "64:ff9b::8.8.8.8", "100.128.0.1"]


@pytest.mark.parametrize("address", HOSTILE_ADDRESSES)
def test_an_address_that_is_not_of_the_internet_is_refused(address: str) -> None:
    assert not addresses.is_allowed(ip_address(address))
    host = f"[{address}]" if ":" in address else address
    with pytest.raises(InvalidRequest) as raised:
        addresses.check(f"https://{host}/")
    assert raised.value.code == "webhook_address_refused"


@pytest.mark.parametrize("address", PUBLIC)
def test_an_address_of_the_internet_is_allowed(address: str) -> None:
    assert addresses.is_allowed(ip_address(address))


def test_the_operator_may_allow_networks(configure: Configure) -> None:
    configure(webhook_allowed_networks="10.20.0.0/16, fd00:1::/64")
    allowed = ["10.20.3.4", "::ffff:10.20.3.4", "fd00:1::7"]
    assert all(addresses.is_allowed(ip_address(address)) for address in allowed)
    refused = ["10.21.0.1", "fd00:2::1", "127.0.0.1"]
    assert not any(addresses.is_allowed(ip_address(address)) for address in refused)


def answering(*found: str) -> Callable[..., list[Any]]:
    return lambda host, port, **_: [(0, 0, 0, "", (address, port)) for address in found]


def test_a_name_with_one_bad_address_among_good_ones_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target = addresses.check("https://example.com/")
    monkeypatch.setattr(socket, "getaddrinfo", answering("8.8.8.8", "8.8.8.8", "1.1.1.1"))
    assert addresses.resolve(target) == ["8.8.8.8", "1.1.1.1"]
    for bad in ("127.0.0.1", "fe80::1%eth0", "::ffff:10.0.0.1"):
        monkeypatch.setattr(socket, "getaddrinfo", answering("8.8.8.8", bad))
        with pytest.raises(Refused, match="not an address of the internet"):
            addresses.resolve(target)


def test_a_name_that_does_not_resolve_is_refused() -> None:
    with pytest.raises(Refused, match=r"nowhere\.invalid does not resolve"):
        addresses.resolve(addresses.check("https://nowhere.invalid/"))


def test_localhost_is_refused_when_it_is_resolved() -> None:
    with pytest.raises(Refused, match="not an address of the internet"):
        addresses.resolve(addresses.check("https://localhost/"))


def test_a_stored_url_that_the_settings_do_not_allow_any_more_is_refused(
    configure: Configure,
) -> None:
    configure(webhook_allow_http=True)
    addresses.stored("http://example.com/")
    configure(webhook_allow_http=False)
    with pytest.raises(Refused, match="https"):
        addresses.stored("http://example.com/")
