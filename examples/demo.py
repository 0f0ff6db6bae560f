"""The main job from end to end, on this machine: `make demo`.

Batches for both models go in through the official `openai` client; results and invoices come out.
Everything it makes is in `.demo/`, which every run empties first.
"""

import argparse
import json
import re
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import openai
from openai import OpenAI
from openai.types import Batch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Column, Table
from rich.terminal_theme import DEFAULT_TERMINAL_THEME, SVG_EXPORT_THEME
from rich.text import Text
from stage import Failed, Stage, last_lines, running

HERE = Path(__file__).parent
FILES = ("support-tickets.jsonl", "help-centre-rerank.jsonl", "mixed-models.jsonl")
ENDED = {"completed", "failed", "expired", "cancelled"}
PATIENCE = 120.0
POLL = 0.25
SHOWN = 6
WIDTH = 110

Json = dict[str, Any]


@dataclass
class Job:
    """One example file on its way."""

    file: Path
    batch: Batch

    @property
    def name(self) -> str:
        return self.file.stem


def main() -> int:
    options = parse_arguments()
    console = Console(
        highlight=False,
        record=options.record is not None,
        width=None if sys.stdout.isatty() else WIDTH,
    )
    # On SIGTERM, stop all processes of the demo, as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    began = time.monotonic()
    try:
        with running(
            options.folder.absolute(), lambda text: console.print(f"[dim]{text} …[/]")
        ) as stage:
            perform(stage, console, options.folder)
        tell_what_next(console, options.folder, time.monotonic() - began)
    except (Failed, openai.OpenAIError) as error:
        console.print(f"The demo failed: {error}", style="red", markup=False)
        return 1
    except KeyboardInterrupt:
        console.print("Interrupted; everything has been stopped.")
        return 130
    if options.record:
        save(console, options.record)
    return 0


def save(console: Console, path: Path) -> None:
    """Save the terminal's output as two pictures: for light and for dark pages."""
    dark = path.with_stem(f"{path.stem}-dark")
    for target, theme in ((path, DEFAULT_TERMINAL_THEME), (dark, SVG_EXPORT_THEME)):
        picture = console.export_svg(title="make demo", theme=theme, clear=False)
        # The reader's own fonts, so the picture fetches nothing; a frame that any page shows.
        picture = re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL)
        target.write_text(picture.replace("rgba(255,255,255,0.35)", "#9198a1"), "utf-8")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Run the example batches for both models and show results and invoices."
    )
    parser.add_argument(
        "--folder", type=Path, default=Path(".demo"), help="where everything is kept; emptied first"
    )
    parser.add_argument(
        "--record", type=Path, metavar="SVG", help="save what the terminal showed as pictures"
    )
    return parser.parse_args()


def perform(stage: Stage, console: Console, folder: Path) -> None:
    """The main job. Only its first line differs from a program for OpenAI's own API."""
    client = OpenAI(base_url=stage.base_url, api_key=stage.api_key)
    console.print(f"Ready: [bold]OpenAI(base_url={stage.base_url!r}, api_key=…)[/]\n")
    jobs = [submit(client, HERE / name) for name in FILES]
    watch(client, jobs, console, stage.data_dir / "logs" / "worker.log")
    results = folder / "results"
    results.mkdir()
    for job in jobs:
        download(client, job, results)
    tickets, searches, mixed = jobs
    show_labels(tickets, results, console)
    show_passages(searches, results, console)
    show_failures(mixed, results, console)
    show_invoices(client, jobs, results, console)


def submit(client: OpenAI, path: Path) -> Job:
    """Upload a file and create its batch; the endpoint is the one that its lines name."""
    endpoint = json.loads(path.read_text("utf-8").partition("\n")[0])["url"]
    file = client.files.create(file=path, purpose="batch")
    return Job(
        path,
        client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h"),
    )


def watch(client: OpenAI, jobs: Sequence[Job], console: Console, log: Path) -> None:
    """Bars that move until every batch has ended; without a terminal, only their last state."""
    deadline = time.monotonic() + PATIENCE
    with bars(jobs, live=console.is_terminal) as (progress, rows):
        while any(job.batch.status not in ENDED for job in jobs):
            if time.monotonic() > deadline:
                raise Failed(
                    f"The batches have not ended after {PATIENCE:.0f} s. The end of"
                    f" {log}:\n{last_lines(log)}"
                )
            time.sleep(POLL)
            for job, row in zip(jobs, rows, strict=True):
                job.batch = client.batches.retrieve(job.batch.id)
                draw(progress, row, job.batch)
        console.print(progress.get_renderable())
    for job in jobs:
        if job.batch.status != "completed":
            raise Failed(
                f"{job.name} is {job.batch.status}: {job.batch.errors}. The end of"
                f" {log}:\n{last_lines(log)}"
            )


@contextmanager
def bars(jobs: Sequence[Job], *, live: bool) -> Iterator[tuple[Progress, list[Any]]]:
    """A bar for each batch.

    They move on a console of their own, so that a recording has only their last state.
    """
    columns = (
        SpinnerColumn(finished_text="[green]✓[/]"),
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        TaskProgressColumn(),
        MofNCompleteColumn(table_column=Column(justify="right")),
        TextColumn("{task.fields[detail]}"),
        TimeElapsedColumn(),
    )
    with Progress(
        *columns, console=Console(highlight=False), transient=True, disable=not live
    ) as progress:
        yield progress, [progress.add_task(job.name, total=None, detail="") for job in jobs]


def draw(progress: Progress, row: Any, batch: Batch) -> None:
    counts = batch.request_counts
    if counts is None or not counts.total:
        progress.update(row, detail=batch.status)
        return
    failed = f" · [red]{counts.failed} failed[/]" if counts.failed else ""
    # The bar ends with the batch, which is a moment after its last line.
    done = counts.completed + counts.failed
    progress.update(row, total=counts.total, completed=done, detail=f"{batch.status}{failed}")


def download(client: OpenAI, job: Job, results: Path) -> None:
    """The output file and, where lines failed, the error file."""
    for file_id, name in (
        (job.batch.output_file_id, output_name(job)),
        (job.batch.error_file_id, error_name(job)),
    ):
        if file_id:
            client.files.content(file_id).write_to_file(results / name)


def output_name(job: Job) -> str:
    return f"{job.name}.results.jsonl"


def error_name(job: Job) -> str:
    return f"{job.name}.errors.jsonl"


def requests(job: Job) -> dict[str, Json]:
    """The bodies that were asked for, by custom_id."""
    return {line["custom_id"]: line["body"] for line in read(job.file)}


def read(path: Path) -> Iterator[Json]:
    with path.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def table(title: str, *columns: str, right: Sequence[str] = ()) -> Table:
    made = Table(
        title=f"\n{title}",
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
    )
    for column in columns:
        is_figure = column in right
        made.add_column(column, justify="right" if is_figure else "left", no_wrap=is_figure)
    return made


def one_line(text: str) -> Text:
    """A cell that is cut off rather than folded."""
    return Text(" ".join(text.split()), no_wrap=True, overflow="ellipsis")


def show_labels(job: Job, results: Path, console: Console) -> None:
    """Tickets beside the label that the model gave them, one ticket for each label."""
    asked = requests(job)
    examples: dict[str, str] = {}
    for line in read(results / output_name(job)):
        label = line["response"]["body"]["choices"][0]["message"]["content"]
        examples.setdefault(label, asked[line["custom_id"]]["messages"][-1]["content"])
    shown = table("Mistral Small 3.1: what a ticket is about", "ticket", "label")
    for label, text in list(examples.items())[:SHOWN]:
        shown.add_row(one_line(text), f"[green]{label}[/]")
    console.print(shown)


def show_passages(job: Job, results: Path, console: Console) -> None:
    """Searches beside the passage that the reranker put first."""
    asked = requests(job)
    shown = table(
        "BGE Reranker v2: which passage answers a search",
        "search",
        "best passage",
        "score",
        right=["score"],
    )
    for line, _ in zip(read(results / output_name(job)), range(SHOWN), strict=False):
        body = asked[line["custom_id"]]
        best = line["response"]["body"]["results"][0]
        shown.add_row(
            one_line(body["query"]),
            one_line(body["documents"][best["index"]]),
            f"{best['relevance_score']:.3f}",
        )
    console.print(shown)


def show_failures(job: Job, results: Path, console: Console) -> None:
    """Lines that their model refused, with its reason."""
    shown = table("Requests that failed, and are not billed", "request", "status", "reason")
    for line in read(results / error_name(job)):
        answer = line["response"]
        shown.add_row(
            line["custom_id"],
            str(answer["status_code"]),
            one_line(answer["body"]["error"]["message"]),
        )
    console.print(shown)


def show_invoices(client: OpenAI, jobs: Sequence[Job], results: Path, console: Console) -> None:
    """Show each batch's exact cost, the invoice of the last batch, and the month's statement."""
    invoices = {job.name: fetch(client, f"/batches/{job.batch.id}/invoice") for job in jobs}
    money = ["list price", "discount", "total"]
    shown = table(
        "Invoices, USD, exact",
        "batch",
        "billed requests",
        *money,
        right=["billed requests", *money],
    )
    for job in jobs:
        invoice = invoices[job.name]
        counts = job.batch.request_counts
        shown.add_row(
            job.name,
            str(counts and counts.completed),
            invoice["subtotal"],
            invoice["discount"],
            f"[bold]{invoice['total']}[/]",
        )
        (results / f"{job.name}.invoice.json").write_text(
            json.dumps(invoice, indent=2) + "\n", "utf-8"
        )
    console.print(shown)
    show_invoice(invoices[jobs[-1].name], jobs[-1].name, console)
    show_statement(fetch(client, f"/statements/{datetime.now(UTC):%Y-%m}"), console)


def fetch(client: OpenAI, path: str) -> Json:
    """An extension that the SDK has no method for."""
    return client.get(path, cast_to=dict[str, Any])


def show_invoice(invoice: Json, name: str, console: Console) -> None:
    figures = ["quantity", "per 1M", "amount"]
    shown = table(f"The invoice of {name}, line by line", "item", "reason", *figures, right=figures)
    for line in invoice["lines"]:
        shown.add_row(
            line["description"],
            line["reason"] or "",
            line["quantity"] or "",
            line["unit_price"] or "",
            line["amount"],
        )
    shown.add_section()
    shown.add_row("total", "", "", invoice["currency"], f"[bold]{invoice['total']}[/]")
    console.print(shown)


def show_statement(statement: Json, console: Console) -> None:
    """Show the month's statement: the exact sums of its batches, and the one line that rounds."""
    shown = table(
        f"The statement of {statement['month']}, a {statement['status']} until the month is over",
        "item",
        "amount",
        right=["amount"],
    )
    for line in statement["lines"]:
        shown.add_row(line["description"], line["amount"])
    shown.add_section()
    shown.add_row(f"payable, {statement['currency']}", f"[bold]{statement['total']}[/]")
    console.print(shown)


def tell_what_next(console: Console, folder: Path, seconds: float) -> None:
    console.print(
        f"\nDone in {seconds:.0f} s; nothing runs any more. Results and invoices are in"
        f" [bold]{folder / 'results'}[/]. Next:"
    )
    console.print(
        "  .venv/bin/xalen-batch up                                    [dim]the same, to stay[/]"
    )
    console.print(
        "  .venv/bin/xalen-batch run examples/support-tickets.jsonl    [dim]submit, watch,"
        " download, invoice in one go[/]"
    )
    console.print(
        "  .venv/bin/xalen-batch validate examples/invalid.jsonl       [dim]what is wrong with a"
        " file, line by line[/]"
    )


if __name__ == "__main__":
    raise SystemExit(main())
