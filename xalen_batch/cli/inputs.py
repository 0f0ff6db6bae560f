"""Input files, checked before anything leaves this machine."""

import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from xalen_batch.cli import progress
from xalen_batch.cli.batch_options import AUTO
from xalen_batch.cli.joined import CHUNK

if TYPE_CHECKING:
    from xalen_batch.cli.rules import Rules
    from xalen_batch.validation.errors import Faults
    from xalen_batch.validation.estimate import Estimate


def checked(path: Path, endpoint: str, rules: "Rules") -> tuple[str | None, "Faults"]:
    """The endpoint of a file, and its faults.

    Much faster than an estimate.
    """
    from xalen_batch.validation.errors import Fault, Faults, refused
    from xalen_batch.validation.lines import scan

    found, faults, models = _named(endpoint), Faults(), set[str]()
    with progress.transfer("checking") as moved:
        for line in scan(
            _chunks(path, moved), endpoint=found, models=rules.models, limits=rules.limits
        ):
            if isinstance(line, Fault):
                faults.add(line)
            else:
                found = line.endpoint
                models.add(line.model)
    for model in sorted(models):
        if fault := refused(model, rules.terms):
            faults.add(fault)
    _check_size(path, faults, rules)
    return found, faults


def estimated(path: Path, endpoint: str, rules: "Rules") -> "Estimate":
    """The faults of a file, and its cost."""
    from xalen_batch.validation.estimate_file import estimate_local

    result = estimate_local(
        path,
        endpoint=_named(endpoint),
        models=rules.models,
        terms=rules.terms,
        discount_rate=rules.discount_rate,
        limits=rules.limits,
        progress=partial(progress.transfer, "estimating"),
    )
    _check_size(path, result.faults, rules)
    return result


def first_url(path: Path) -> str | None:
    """The endpoint of the first line, even if that has faults."""
    with path.open("rb") as lines:
        first = next((line for line in lines if line.strip()), b"")
    try:
        url = json.loads(first)["url"]
    except (ValueError, KeyError, TypeError):
        return None
    return url if isinstance(url, str) else None


def _named(endpoint: str) -> str | None:
    """The canonical endpoint of an option; None stands for that of the first line."""
    from xalen_batch.endpoints.names import endpoint_of

    return None if endpoint == AUTO else endpoint_of(endpoint) or endpoint


def _check_size(path: Path, faults: "Faults", rules: "Rules") -> None:
    from xalen_batch.validation.errors import Fault

    size, limit = path.stat().st_size, rules.limits.max_upload_bytes
    if size > limit:
        faults.add(
            Fault(
                "file_too_large",
                f"The file has {size:,} bytes; the most is {limit:,}. Split it into several files.",
            )
        )


def _chunks(path: Path, moved: progress.Moved) -> Iterator[bytes]:
    done = 0
    with path.open("rb") as source:
        size = os.fstat(source.fileno()).st_size
        while chunk := source.read(CHUNK):
            yield chunk
            done += len(chunk)
            moved(done, size)
