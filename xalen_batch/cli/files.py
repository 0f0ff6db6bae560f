"""`files`: uploads, and the output files of batches."""

from pathlib import Path
from typing import Annotated, Any

import typer

from xalen_batch.cli import download, progress, uploads
from xalen_batch.cli.client import ApiClient, ApiOptions
from xalen_batch.cli.failures import Failed
from xalen_batch.cli.group import Group
from xalen_batch.cli.joined import InputFile, joined
from xalen_batch.cli.option_groups import with_option_groups
from xalen_batch.cli.options import Json, examples
from xalen_batch.cli.output import (
    fields,
    figure,
    moment,
    print_json,
    print_line,
    print_list,
    say,
    say_more,
)
from xalen_batch.cli.output import show as show_table
from xalen_batch.cli.stacked import Layout, stacked

FILES: tuple[Layout, ...] = (
    (("id",), ("name",), ("bytes",), ("purpose",), ("created",), ("expires",)),
    (("id", "name"), ("created", "expires"), ("bytes", "purpose")),
    (("id", "name", "created", "expires"), ("bytes", "purpose")),
)

commands = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    help="Upload, list, show, download and delete files.",
    epilog=examples("xalen-batch files upload requests.jsonl", "xalen-batch files list"),
)


def _file_id(text: str) -> str:
    if not text.startswith("file-"):
        raise typer.BadParameter(
            f"{text!r} is not the id of a file, `file-…`. `xalen-batch files list` shows the ids."
        )
    return text


def _file_ids(texts: list[str]) -> list[str]:
    return [_file_id(text) for text in texts]


FileId = Annotated[str, typer.Argument(metavar="ID", help="The file, `file-…`.", callback=_file_id)]
FileIds = Annotated[
    list[str], typer.Argument(metavar="ID…", help="The files, `file-…`.", callback=_file_ids)
]


@commands.command(
    epilog=examples(
        "xalen-batch files upload requests.jsonl",
        "id=$(make-requests | xalen-batch files upload -)",
    )
)
@with_option_groups
def upload(file: InputFile, as_json: Json = False, *, api: ApiOptions) -> None:
    """Upload a file as batch input and print its id.

    Nothing is checked or run: `submit` does that. If the upload of a large file is interrupted, the
    same command goes on where it stopped, within an hour.
    """
    client = api.connect()
    with joined([file]) as source:
        made = uploads.send(client, source.path, source.name)
    if as_json:
        print_json(made)
    else:
        print_line(made["id"])


@commands.command(
    "list",
    epilog=examples(
        "xalen-batch files list",
        "xalen-batch files list --purpose batch_output",
        "xalen-batch files list --json | jq -r .data[0].id",
    ),
)
@with_option_groups
def list_files(
    limit: Annotated[
        int, typer.Option(min=1, metavar="N", help="Most files to show, the newest first.")
    ] = 20,
    purpose: Annotated[
        str | None,
        typer.Option(
            metavar="PURPOSE",
            help="Only of this purpose: `batch` for inputs, `batch_output` for results.",
        ),
    ] = None,
    as_json: Json = False,
    *,
    api: ApiOptions,
) -> None:
    """List your files, the newest first."""
    files, has_more = api.connect().listing(limit, "/files", purpose=purpose)
    if as_json:
        print_list(files, has_more=has_more)
    elif files:
        show_table(stacked(FILES, map(_row, files), right=("bytes",), folded=("name",)))
        if has_more:
            say_more(len(files))
    else:
        say(
            "No files yet. `xalen-batch files upload FILE` makes one."
            if purpose is None
            else f"No file has the purpose {purpose}."
        )


@commands.command(
    epilog=examples("xalen-batch files show file-0192…", "xalen-batch files show file-0192… --json")
)
@with_option_groups
def show(file_id: FileId, as_json: Json = False, *, api: ApiOptions) -> None:
    """Show every field of a file."""
    file = api.connect().get(f"/files/{file_id}")
    if as_json:
        print_json(file)
    else:
        show_table(
            fields((name, _shown(name, value)) for name, value in file.items() if name != "object")
        )


@commands.command(
    "download",
    epilog=examples(
        "xalen-batch files download file-0192… -o requests.jsonl",
        "xalen-batch files download file-0192… | head -1",
    ),
)
@with_option_groups
def download_file(
    file_id: FileId,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="OUT",
            help="The file to write, whole or not at all; `-` is stdout.",
        ),
    ] = download.STDOUT,
    *,
    api: ApiOptions,
) -> None:
    """Download a file's bytes as they are."""
    download.check_target(output)
    client = api.connect()
    with progress.transfer("downloading") as moved, download.writer(output) as out:
        client.download(f"/files/{file_id}/content", out.write, moved, is_fixed=True)


@commands.command(
    epilog=examples(
        "xalen-batch files delete file-0192…", "xalen-batch files delete file-0192… file-0193…"
    )
)
@with_option_groups
def delete(file_ids: FileIds, as_json: Json = False, *, api: ApiOptions) -> None:
    """Delete files. For an output file, this erases the answers, but not their charges."""
    client = api.connect()
    deleted = [_delete(client, file_id) for file_id in dict.fromkeys(file_ids)]
    if as_json:
        print_list(deleted)


def _delete(client: ApiClient, file_id: str) -> dict[str, Any]:
    try:
        deleted = client.delete(f"/files/{file_id}")
    except Failed as error:
        # Name the file in the error: those before it are deleted.
        raise Failed(
            str(error) if file_id in str(error) else f"{file_id}: {error}", error.exit_code
        ) from error
    say(f"{file_id} is deleted.")
    return deleted


def _row(file: dict[str, Any]) -> tuple[object, ...]:
    return (
        file["id"],
        file["filename"],
        figure(file["bytes"]),
        file["purpose"],
        moment(file["created_at"]),
        moment(file["expires_at"]),
    )


def _shown(name: str, value: Any) -> object:
    if name.endswith("_at"):
        return moment(value)
    return "-" if value is None else figure(value)
