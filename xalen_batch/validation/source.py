"""The bytes of an input file: an object in storage, or a file that the command line checks."""

from collections.abc import Iterator
from pathlib import Path

from xalen_batch import storage

# The key of an object in storage, or the path of a local file.
Source = str | Path


def size(source: Source) -> int:
    """Its bytes. Raises FileNotFoundError."""
    return source.stat().st_size if isinstance(source, Path) else storage.size(source)


def chunks(source: Source, start: int = 0, end: int | None = None) -> Iterator[bytes]:
    """Its bytes from `start` until `end`, in chunks of `storage.READ_CHUNK`.

    Raises storage.UNAVAILABLE, also for a file that was deleted or cut meanwhile.
    """
    if not isinstance(source, Path):
        yield from storage.chunks(source, start, end)
        return
    end = size(source) if end is None else end
    with source.open("rb") as file:
        file.seek(start)
        while start < end:
            chunk = file.read(min(storage.READ_CHUNK, end - start))
            if not chunk:
                raise OSError(f"{source} was cut while it was read")
            yield chunk
            start += len(chunk)
