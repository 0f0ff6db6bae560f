"""Units of settings, and values that are written as text."""

MiB = 1024 * 1024
GiB = 1024 * MiB


def parted(value: object) -> object:
    """A text as its parts between commas; other values as they are."""
    if not isinstance(value, str):
        return value
    return [part.strip() for part in value.split(",") if part.strip()]


def or_none(value: object) -> object:
    """None for `none` and for an empty text: no limit."""
    return None if value in ("none", "") else value
