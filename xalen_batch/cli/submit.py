"""`submit`: a file becomes a batch."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from xalen_batch.cli import batch_view, inputs, progress, windows
from xalen_batch.cli.client import Client, connect
from xalen_batch.cli.failures import INTERRUPTED, Failed
from xalen_batch.cli.options import ApiKey, BaseUrl, Json, Live, examples
from xalen_batch.cli.output import print_json, print_line, safe, say

Window = Annotated[str, typer.Option(help="Time until the batch must have ended: whole hours or days, `1h` to `7d`.")]
Metadata = Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="A note kept with the batch; give it up to 16 times.")]

commands = typer.Typer()


@commands.command(
    epilog=examples(
        "xalen-batch submit requests.jsonl",
        "xalen-batch submit requests.jsonl --window 7d --metadata team=search",
        'xalen-batch submit requests.jsonl --execution-window "22:00-06:00 mon-fri" --timezone Europe/Berlin',
        "id=$(make-requests | xalen-batch submit -) && xalen-batch watch $id",
    )
)
def submit(
    file: inputs.InputFile,
    endpoint: inputs.Endpoint = inputs.AUTO,
    window: Window = "24h",
    execution_window: windows.Hours = None,
    timezone: windows.Timezone = None,
    metadata: Metadata = None,
    as_json: Json = False,
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
    live: Live = False,
) -> None:
    """Submit a file and print the new batch's id."""
    notes, hours = parse_metadata(metadata), windows.asked_for(execution_window, timezone)
    with inputs.opened(file) as path:
        with before_submission():
            checked = check(path, inputs.name_of(file), endpoint)
            client = connect(base_url, api_key, live)
        batch = create(client, checked, window, hours, notes)
    if as_json:
        print_json(batch)
    else:
        print_line(batch["id"])


@contextmanager
def before_submission() -> Iterator[None]:
    """Where Ctrl-C leaves nothing behind, and says so."""
    try:
        yield
    except KeyboardInterrupt:
        raise Failed("Stopped before the batch was submitted; nothing runs.", INTERRUPTED) from None


@dataclass(frozen=True)
class Checked:
    """A file that may be sent. `errors`: models that the catalog on this machine lacks; the server may have them."""

    path: Path
    name: str
    endpoint: str
    errors: list[dict[str, Any]]


def check(path: Path, name: str, endpoint: str) -> Checked:
    """Look at a file before anything leaves this machine. Failed, every error said, if a batch would refuse it."""
    found, faults = inputs.checked(path, endpoint)
    errors = faults.render()
    if any(error["code"] != "model_not_found" for error in errors):
        raise _refused(name, errors)
    return Checked(path, name, found or endpoint, errors)


def create(client: Client, checked: Checked, window: str, hours: dict[str, Any] | None, metadata: dict[str, str]) -> dict[str, Any]:
    """Upload the file and make a batch of it, whose lines start in certain hours alone if any are given."""
    with before_submission():
        file = upload(client, checked)
    request = {"input_file_id": file["id"], "endpoint": checked.endpoint, "completion_window": window, "metadata": metadata}
    request |= {} if hours is None else {"execution_window": hours}
    try:
        batch = client.post("/batches", request)
    except KeyboardInterrupt:
        raise Failed("Stopped. The batch may have been made: `xalen-batch list` tells.", INTERRUPTED) from None
    say(f"{safe(checked.name)} is batch {batch['id']}.")
    return batch


def upload(client: Client, checked: Checked) -> dict[str, Any]:
    """Send a file that has been looked at. Failed if the server, too, lacks a model that it names."""
    if checked.errors and not _knows_more(client):
        raise _refused(checked.name, checked.errors)
    with progress.transfer("uploading") as moved:
        return client.upload(checked.path, checked.name, moved)


def _refused(name: str, errors: list[dict[str, Any]]) -> Failed:
    batch_view.print_line_errors(errors, name)
    return Failed(f"{name} has errors, so nothing was submitted. `xalen-batch validate --all` shows every one.")


def _knows_more(client: Client) -> bool:
    """Whether the server has models that the catalog on this machine lacks."""
    from xalen_batch import catalog

    return any(model["id"] not in catalog.models() for model in client.get("/models")["data"])


def parse_metadata(entries: list[str] | None) -> dict[str, str]:
    """`KEY=VALUE` entries as a mapping."""
    for entry in entries or []:
        if "=" not in entry or entry.startswith("="):
            raise typer.BadParameter(f"{entry!r} is not KEY=VALUE.", param_hint="--metadata")
    return dict(entry.split("=", 1) for entry in entries or [])
