"""Entity tags, and the preconditions that compare them (RFC 9110, section 13)."""

import re

# A quoted tag, with its mark if it is weak.
_TAG = re.compile(r'(W/)?("[\x21\x23-\x7e\x80-\xff]*")')


def entity_tag(sha256: bytes, encoding: str | None = None) -> str:
    """The strong entity tag of content. Each content coding of it has a tag of its own."""
    return f'"{sha256.hex()}{f"-{encoding}" if encoding else ""}"'


def if_match(field: str | None, tag: str) -> bool:
    """Whether the request may go on: without the field, or if it has `*` or the same strong tag."""
    return field is None or field.strip() == "*" or ("", tag) in _TAG.findall(field)


def if_none_match(field: str | None, tag: str) -> bool:
    """Whether the content has to be sent: no if the field has `*` or the tag, weak or strong."""
    if field is None:
        return True
    return field.strip() != "*" and tag not in [listed for _, listed in _TAG.findall(field)]


def if_range(field: str | None, tag: str) -> bool:
    """Whether a Range is served: without the field, or if it is the same strong tag.

    A date never matches: no answer has a Last-Modified.
    """
    return field is None or field.strip() == tag
