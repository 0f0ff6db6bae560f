"""`submit`: a file becomes a batch."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from xalen_batch.cli import batch_view, inputs, progress, rules, windows
from xalen_batch.cli.client import Client, connect
from xalen_batch.cli.failures import INTERRUPTED, Failed
from xalen_batch.cli.options import ApiKey, BaseUrl, Json, Live, examples
from xalen_batch.cli.output import counted, print_json, print_line, safe, say

if TYPE_CHECKING:
    from xalen_batch.pipeline.faults import Faults

Window = Annotated[str, typer.Option(help="Time until the batch must have ended: whole hours or days, `1h` to `7d`.")]
ON_INVALID_HELP = (
    "What invalid lines do: `fail` (if not given), so that nothing runs, or `skip`, so that the others run and they end in the error file."
)
OnInvalid = Annotated[Literal["fail", "skip"] | None, typer.Option("--on-invalid", metavar="fail|skip", help=ON_INVALID_HELP)]
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
    on_invalid: OnInvalid = None,
    as_json: Json = False,
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
    live: Live = False,
) -> None:
    """Submit a file and print the new batch's id."""
    notes, hours = parse_metadata(metadata), windows.asked_for(execution_window, timezone)
    with inputs.opened(file) as path:
        with before_submission():
            client = connect(base_url, api_key, live)
            checked = check(client, path, inputs.name_of(file), endpoint, on_invalid)
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
    """A file that may be sent. `on_invalid`: None is the server's default."""

    path: Path
    name: str
    endpoint: str
    on_invalid: str | None = None


def check(client: Client, path: Path, name: str, endpoint: str, on_invalid: str | None = None) -> Checked:
    """Look at a file before it leaves this machine, by the server's models and limits. Failed, every error said, if it would be refused."""
    servers = rules.of_server(client)
    found, faults = inputs.checked(path, endpoint, servers or rules.local())
    errors = faults.render()
    # The server may have models that the catalog on this machine lacks.
    if errors and (servers or any(error["code"] != "model_not_found" for error in errors)):
        batch_view.print_line_errors(errors, name)
        if on_invalid != "skip" or not faults.are_of_lines:
            raise Failed(
                f"{name} has errors, so nothing was submitted. `xalen-batch validate --all` shows every one.{_other_lines(faults)}"
            )
        say(
            f"{counted(faults.count, 'invalid line')} of {safe(name)} will be skipped; the error file will hold the reasons.",
            style="yellow",
        )
    return Checked(path, name, found or inputs.first_url(path) or endpoint, on_invalid)


def _other_lines(faults: "Faults") -> str:
    return " --on-invalid skip runs the other lines." if faults.are_of_lines else ""


def create(client: Client, checked: Checked, window: str, hours: dict[str, Any] | None, metadata: dict[str, str]) -> dict[str, Any]:
    """Upload the file and make a batch of it, whose lines start in certain hours alone if any are given."""
    with before_submission():
        file = upload(client, checked)
    request = {"input_file_id": file["id"], "endpoint": checked.endpoint, "completion_window": window, "metadata": metadata}
    request |= {} if hours is None else {"execution_window": hours}
    request |= {} if checked.on_invalid is None else {"on_invalid": checked.on_invalid}
    try:
        batch = client.post("/batches", request)
    except KeyboardInterrupt:
        raise Failed("Stopped. The batch may have been made: `xalen-batch list` tells.", INTERRUPTED) from None
    say(f"{safe(checked.name)} is batch {batch['id']}.")
    return batch


def upload(client: Client, checked: Checked) -> dict[str, Any]:
    """Send a file that has been looked at."""
    with progress.transfer("uploading") as moved:
        return client.upload(checked.path, checked.name, moved)


def parse_metadata(entries: list[str] | None) -> dict[str, str]:
    """`KEY=VALUE` entries as a mapping."""
    for entry in entries or []:
        if "=" not in entry or entry.startswith("="):
            raise typer.BadParameter(f"{entry!r} is not KEY=VALUE.", param_hint="--metadata")
    return dict(entry.split("=", 1) for entry in entries or [])
