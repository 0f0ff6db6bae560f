"""Contents cut into chunks."""


def cut(content: bytes, places: list[int]) -> list[bytes]:
    """A content as chunks that end at these places."""
    ends = sorted({min(place, len(content)) for place in places} | {len(content)})
    return [content[start:end] for start, end in zip([0, *ends], ends, strict=False)]
