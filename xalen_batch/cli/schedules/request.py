"""Builds the request that creates or changes a schedule, and finds errors before it is sent."""

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer

from xalen_batch.cli import clock, submit, uploads, windows
from xalen_batch.cli.batch_options import AUTO, parse_metadata, usage_error
from xalen_batch.cli.client import ApiClient
from xalen_batch.cli.failures import INTERRUPTED, Failed
from xalen_batch.cli.joined import Joined, joined
from xalen_batch.cli.output import safe
from xalen_batch.cli.schedules.options import Given

# The options that name the input of runs, and the field that each sets.
WHAT = {
    "file": "input_file_id",
    "file_id": "input_file_id",
    "template": "template_file_id",
    "template_id": "template_file_id",
    "prefix": "source",
    "folder": "source",
    "inbox": "inbox",
}
OF_SOURCE = ("pattern", "ready_marker", "repeat")
# Options that differ from the name of their field.
RENAMED = {"window": "completion_window", "catch_up": "catch_up_window"}
PLAIN = (
    "timezone",
    "jitter",
    "endpoint",
    "window",
    "on_invalid",
    "overlap",
    "misfire",
    "misfire_limit",
    "catch_up",
    "pause_on_failure",
)


def option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def chosen(given: Given) -> str | None:
    """The given option of those that name the input; a usage error if there are several."""
    found = [name for name in WHAT if getattr(given, name)]
    if len(found) > 1:
        raise typer.BadParameter(
            f"a schedule runs one thing; {' and '.join(map(option, found))} are given.",
            param_hint=option(found[1]),
        )
    return found[0] if found else None


def check_when(cron: str, timezone: str) -> None:
    """A usage error for an invalid cron expression or zone."""
    from xalen_batch.schedules.cron import Cron

    with usage_error():
        Cron.parse(cron, timezone)


def plain(given: Given, timezone: str) -> dict[str, Any]:
    """The fields that need no file. `timezone`: the schedule's, even if it was not given now."""
    body = {
        RENAMED.get(name, name): value
        for name in PLAIN
        if (value := getattr(given, name)) is not None
    }
    for name, time in (("starts", given.starts), ("ends", given.ends)):
        if time is not None:
            body[f"{name}_at"] = clock.moment(time, option(name))
    if given.metadata:
        body["metadata"] = parse_metadata(given.metadata)
    if given.execution_window is not None:
        body["execution_window"] = windows.parse_window(given.execution_window, timezone)
    return body


def source_or_inbox(
    given: Given, current: dict[str, Any], *, has_marker: bool = True
) -> dict[str, Any]:
    """The field `source` or `inbox`, if an option changes it; other values are those of `current`.

    `has_marker` False: removes the ready marker.
    """
    what = chosen(given)
    field = (
        WHAT[what]
        if what
        else next((name for name in ("source", "inbox") if current.get(name)), None)
    )
    details = {
        name: value
        for name in (*OF_SOURCE, "on_empty")
        if (value := getattr(given, name)) is not None
    }
    if not has_marker:
        details["ready_marker"] = None
    for name in details:
        if field != "source" and not (field == "inbox" and name == "on_empty"):
            belongs = (
                "--prefix, --folder or --inbox" if name == "on_empty" else "--prefix or --folder"
            )
            raise typer.BadParameter(f"it belongs to {belongs}.", param_hint=option(name))
    if field not in ("source", "inbox") or not (what or details):
        return {}
    kept = {name: value for name, value in (current.get(field) or {}).items() if name != "pending"}
    place = {"prefix": given.prefix, "folder": given.folder} if field == "source" and what else {}
    return {field: kept | place | details}


@dataclass
class RequestFile:
    """The fields that name a request's file.

    `uploaded` is the id of a new upload, `name` its local name.
    """

    body: dict[str, Any] = field(default_factory=dict)
    uploaded: str | None = None
    name: str = ""


def send_file(client: ApiClient, given: Given) -> RequestFile:
    """Check and upload the schedule's file, or look up one that exists."""
    path = given.file or given.template
    if path is not None:
        with before_request(), joined([path]) as source:
            endpoint, file = _upload(client, source, path, given)
        id = file["id"]
        return RequestFile(
            {WHAT["file" if given.file else "template"]: id, "endpoint": endpoint},
            id,
            source.name,
        )
    if id := given.file_id or given.template_id:
        endpoint = given.endpoint or _endpoint(client.first_line(f"/files/{id}/content"), id)
        return RequestFile(
            {WHAT["file_id" if given.file_id else "template_id"]: id, "endpoint": endpoint}
        )
    return RequestFile()


def _upload(
    client: ApiClient, source: Joined, file: Path, given: Given
) -> tuple[str, dict[str, Any]]:
    """The endpoint of a file, and the API's file object."""
    path, name = source.path, source.name
    if given.file:
        checked = submit.check(client, source, [file], given.endpoint or AUTO, given.on_invalid)
        return checked.endpoint, uploads.send(client, path, name)
    # The server fills in the template, as for the next run, and validates the result.
    with path.open("rb") as lines:
        number, line = next(
            ((number, line) for number, line in enumerate(lines, 1) if line.strip()), (1, b"")
        )
    endpoint = given.endpoint or _endpoint(line, name, number)
    return endpoint, uploads.send(client, path, name)


def _endpoint(line: bytes, name: str, number: int = 1) -> str:
    """The endpoint of the first line of a file that is not blank."""
    if not line.strip():
        raise Failed(f"{safe(name)} is empty. Write one JSON object on each line.")
    try:
        request = json.loads(line.decode("utf-8-sig"))
    except ValueError as error:
        hint = (
            ' A placeholder stands inside a string, as in "day-{{scheduled_date}}".'
            if b"{{" in line
            else ""
        )
        raise Failed(
            f"Line {number} of {safe(name)} is no JSON: {error}. Write one JSON object on each"
            f" line.{hint}"
        ) from None
    url = request.get("url") if isinstance(request, dict) else None
    if not isinstance(url, str):
        raise Failed(
            f"Line {number} of {safe(name)} has no url. Is it JSON Lines, one request a line?"
            " --endpoint names it else."
        )
    return url


@contextmanager
def before_request() -> Iterator[None]:
    """A context in which Ctrl-C says that no schedule was changed."""
    try:
        yield
    except KeyboardInterrupt:
        raise Failed("Stopped; no schedule was made or changed.", INTERRUPTED) from None


def deleted_if_refused(client: ApiClient, sent: RequestFile) -> AbstractContextManager[None]:
    """Delete a file that was uploaded for a request, if that request is refused."""
    return uploads.deleted_if_refused(
        client,
        sent.uploaded,
        sent.name,
        "It may have been done all the same: `xalen-batch schedules list` tells.",
    )
