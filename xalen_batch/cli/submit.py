"""`submit`: makes a batch of a file."""

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from xalen_batch.cli import batch_view, inputs, rules, uploads, windows
from xalen_batch.cli.batch_options import (
    AUTO,
    Endpoint,
    Metadata,
    OnInvalid,
    Window,
    parse_metadata,
)
from xalen_batch.cli.batch_webhook import WebhookOptions
from xalen_batch.cli.client import ApiClient, ApiOptions
from xalen_batch.cli.failures import INTERRUPTED, Failed
from xalen_batch.cli.joined import STDIN, InputFiles, Joined, joined
from xalen_batch.cli.option_groups import with_option_groups
from xalen_batch.cli.options import Json, examples
from xalen_batch.cli.output import counted, print_json, print_line, safe, say

if TYPE_CHECKING:
    from xalen_batch.validation.errors import Faults

commands = typer.Typer()


@commands.command(
    epilog=examples(
        "xalen-batch submit requests.jsonl",
        "xalen-batch submit monday.jsonl.gz tuesday.jsonl.zst exports/",
        "xalen-batch submit requests.jsonl --window 7d --metadata team=search",
        'xalen-batch submit requests.jsonl --window 3d --execution-window "22:00-06:00 mon-fri"'
        " --timezone Europe/Berlin",
        "XALEN_WEBHOOK_SECRET=$(cat hook.secret) xalen-batch submit requests.jsonl"
        " --webhook https://example.com/hooks/xalen",
        "id=$(make-requests | xalen-batch submit -) && xalen-batch watch $id",
    )
)
@with_option_groups
def submit(
    files: InputFiles,
    endpoint: Endpoint = AUTO,
    window: Window = "24h",
    execution_window: windows.Hours = None,
    timezone: windows.Timezone = None,
    metadata: Metadata = None,
    on_invalid: OnInvalid = None,
    *,
    hook: WebhookOptions,
    as_json: Json = False,
    api: ApiOptions,
) -> None:
    """Submit a file, or several as one batch, and print the new batch's id."""
    notes, hours = parse_metadata(metadata), windows.asked_for(execution_window, timezone, window)
    webhook = hook.asked_for()
    with joined(files) as found:
        with before_submission():
            client = api.connect()
            checked = check(client, found, files, endpoint, on_invalid)
        batch = create(client, checked, window, hours, notes, webhook)
    if as_json:
        print_json(batch)
    else:
        print_line(batch["id"])


@contextmanager
def before_submission() -> Iterator[None]:
    """A context in which Ctrl-C says that nothing was submitted."""
    try:
        yield
    except KeyboardInterrupt:
        raise Failed("Stopped before the batch was submitted; nothing runs.", INTERRUPTED) from None


@dataclass(frozen=True)
class Checked:
    """A valid file. `on_invalid` None is the default of the server."""

    path: Path
    name: str
    endpoint: str
    on_invalid: str | None = None


def check(
    client: ApiClient,
    source: Joined,
    files: Sequence[Path],
    endpoint: str,
    on_invalid: str | None = None,
) -> Checked:
    """Validate a file by the server's models and limits before it is sent.

    Failed if it would be refused; its errors are then on stderr. `files`: the names that the user
    gave.
    """
    servers, name, path = rules.of_server(client), source.name, source.path
    found, faults = inputs.checked(path, endpoint, servers or rules.local())
    errors = faults.render()
    # The server may have models that this machine's catalog lacks.
    if errors and (servers or any(error["code"] != "model_not_found" for error in errors)):
        batch_view.print_line_errors(source.placed(errors), name)
        if on_invalid != "skip" or not faults.are_of_lines:
            raise Failed(
                f"{safe(name)} has {counted(faults.count, 'error')}, so nothing was"
                f" submitted.{_hint(files, faults.count)}{_other_lines(faults)}"
            )
        say(
            f"{counted(faults.count, 'invalid line')} of {safe(name)} will be skipped; the error"
            " file will hold the reasons.",
            style="yellow",
        )
    return Checked(path, name, found or inputs.first_url(path) or endpoint, on_invalid)


def _other_lines(faults: "Faults") -> str:
    return " --on-invalid skip runs the other lines." if faults.are_of_lines else ""


def _hint(files: Sequence[Path], errors: int) -> str:
    """The command that shows the errors that were left out; empty if none were."""
    if errors <= batch_view.SHOWN_ERRORS:
        return ""
    of_stdin = " with the same input" if STDIN in files else ""
    return f" `xalen-batch validate --all {shlex.join(map(str, files))}`{of_stdin} shows every one."


def create(
    client: ApiClient,
    checked: Checked,
    window: str,
    hours: dict[str, Any] | None,
    metadata: dict[str, str],
    webhook: dict[str, str] | None,
) -> dict[str, Any]:
    """Upload the file and make a batch of it, with an execution window and a webhook if given."""
    with before_submission():
        file = uploads.send(client, checked.path, checked.name)
    request = {
        "input_file_id": file["id"],
        "endpoint": checked.endpoint,
        "completion_window": window,
        "metadata": metadata,
    }
    request |= {} if hours is None else {"execution_window": hours}
    request |= {} if webhook is None else {"webhook": webhook}
    request |= {} if checked.on_invalid is None else {"on_invalid": checked.on_invalid}
    with uploads.deleted_if_refused(
        client,
        file["id"],
        safe(checked.name),
        "The batch may have been made: `xalen-batch list` tells.",
    ):
        batch = client.post("/batches", request)
    say(f"{safe(checked.name)} is batch {batch['id']}.")
    return batch
