"""Options of a batch. Each is checked before a request is sent: an invalid value is a usage error
(exit 2).
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Literal

import typer

AUTO = "auto"
METADATA = "--metadata"


@contextmanager
def usage_error(option: str | None = None) -> Iterator[None]:
    """Convert the API's refusal of a field into a usage error of an option.

    Without `option`, the option has the name of the field.
    """
    from xalen_batch.errors import InvalidRequest

    try:
        yield
    except InvalidRequest as error:
        message = re.sub(r"^[a-z_.]+: ", "", error.message)
        raise typer.BadParameter(message, param_hint=option or f"--{error.param}") from None


def check_window(text: str | None) -> str | None:
    """Raise a usage error for an invalid completion window."""
    from xalen_batch import windows

    if text is not None:
        with usage_error("--window"):
            windows.completion(text)
    return text


def check_catch_up(text: str | None) -> str | None:
    """Raise a usage error for an invalid catch-up window."""
    from xalen_batch import windows

    if text is not None:
        with usage_error("--catch-up"):
            windows.catch_up(text)
    return text


def check_endpoint(text: str | None) -> str | None:
    """Raise a usage error for an endpoint that batches do not have."""
    from xalen_batch.endpoints.names import ENDPOINTS, endpoint_of

    if text is not None and endpoint_of(text) is None:
        raise typer.BadParameter(
            f"{text[:100]!r} is not an endpoint. Give one of {', '.join(ENDPOINTS)}.",
            param_hint="--endpoint",
        )
    return text


def _check_endpoint_or_auto(text: str) -> str | None:
    return text if text == AUTO else check_endpoint(text)


Window = Annotated[
    str,
    typer.Option(
        metavar="TIME",
        help="Time until the batch must have ended: whole hours or days, `1h` to `7d`.",
        callback=check_window,
    ),
]
Endpoint = Annotated[
    str,
    typer.Option(
        metavar="/v1/…",
        help="The endpoint of every line; `auto` takes it from the first line.",
        callback=_check_endpoint_or_auto,
    ),
]
Metadata = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY=VALUE", help="A note kept with the batch; give it up to 16 times."),
]
ON_INVALID_HELP = (
    "What invalid lines do: `fail` (if not given), so that nothing runs, or `skip`, so that the"
    " others run and they end in the error file."
)
OnInvalid = Annotated[
    Literal["fail", "skip"] | None,
    typer.Option("--on-invalid", metavar="fail|skip", help=ON_INVALID_HELP),
]


def parse_metadata(entries: list[str] | None) -> dict[str, str]:
    """`KEY=VALUE` entries as a mapping within the API's limits; a usage error for anything else."""
    found: dict[str, str] = {}
    for entry in entries or []:
        if any("\ud800" <= char <= "\udfff" for char in entry):
            raise _refused(f"{entry!r} is not text in UTF-8.")
        key, equals, value = entry.partition("=")
        if not (key and equals):
            raise _refused(f"{entry!r} is not KEY=VALUE.")
        if key in found:
            raise _refused(f"{key!r} is given twice. Give each key one value.")
        found[key] = value
    if found:
        _check_lengths(found)
    return found


def _check_lengths(metadata: dict[str, str]) -> None:
    from xalen_batch import fields

    if len(metadata) > fields.MOST_NOTES:
        raise _refused(
            f"{len(metadata)} keys are given; a batch keeps at most {fields.MOST_NOTES}."
        )
    for key, value in metadata.items():
        for what, text, most in (
            ("key", key, fields.LONGEST_KEY),
            ("value", value, fields.LONGEST_VALUE),
        ):
            if len(text) > most:
                raise _refused(
                    f"the {what} of {key[:20]!r} has {len(text):,} characters; at most {most} are"
                    " kept."
                )


def _refused(message: str) -> typer.BadParameter:
    return typer.BadParameter(message, param_hint=METADATA)
