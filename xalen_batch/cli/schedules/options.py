"""The options of a schedule, shared by `create` and `edit`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from xalen_batch.cli.batch_options import check_catch_up, check_endpoint, check_window

WHAT, WHEN, HOW = "What it runs: one of --file to --inbox", "When", "How"

Overlap = Literal["skip", "buffer_one", "allow", "cancel_previous"]
Misfire = Literal["latest", "all", "none"]
OnInvalid = Literal["fail", "skip"]
OnEmpty = Literal["skip", "fail"]

CRON_HELP = (
    'Five fields (minute, hour, day of month, month, day of week), quoted: "30 2 * * *"; or'
    " `@daily` and the like."
)
ZONE_HELP = (
    "Time zone of the schedule, such as `Europe/Berlin`. For a new one, if not given: this"
    " machine's, or UTC if its name is unknown."
)

Cron = Annotated[
    str, typer.Option("--cron", metavar="EXPRESSION", help=CRON_HELP, rich_help_panel=WHEN)
]
Timezone = Annotated[
    str | None, typer.Option("--timezone", metavar="ZONE", help=ZONE_HELP, rich_help_panel=WHEN)
]
Starts = Annotated[
    str | None,
    typer.Option(
        "--starts", metavar="TIME", help="Do not fire before this time.", rich_help_panel=WHEN
    ),
]
Ends = Annotated[
    str | None,
    typer.Option(
        "--ends", metavar="TIME", help="Do not fire from this time on.", rich_help_panel=WHEN
    ),
]
JITTER_HELP = (
    "Fire up to this many seconds late, always by the same amount, so that schedules do not start"
    " all at once."
)
Jitter = Annotated[
    int | None,
    typer.Option(
        "--jitter", metavar="SECONDS", min=0, max=900, help=JITTER_HELP, rich_help_panel=WHEN
    ),
]


def _what(help: str, *, metavar: str | None = None) -> Any:
    return typer.Option(metavar=metavar, help=help, rich_help_panel=WHAT)


def _how(
    help: str, *, metavar: str, callback: Any = None, min: int | None = None, max: int | None = None
) -> Any:
    return typer.Option(
        metavar=metavar, help=help, rich_help_panel=HOW, callback=callback, min=min, max=max
    )


FILE_HELP = "Upload this file and run it unchanged every time; `-` is stdin."
TEMPLATE_HELP = (
    "Upload this file and fill in its placeholders, such as `{{scheduled_date-1d}}`, for every run;"
    " `-` is stdin."
)
PREFIX_HELP = (
    "Run the new objects below this prefix of your account's drop area in the server's storage; may"
    " hold placeholders."
)
FOLDER_HELP = (
    "Run the new files in this folder on the server, below one of its drop roots; may hold"
    " placeholders."
)
ENDPOINT_HELP = "The endpoint of every line. If not given: that of the file's first line."
WINDOW_HELP = (
    "Time until each batch must have ended: whole hours or days, `1h` to `7d`; 24h if not given."
)
METADATA_HELP = "A note kept with every batch; give it up to 16 times."
EXECUTION_HELP = (
    'Start lines only in these hours of the time zone: "22:00-06:00", or "22:00-06:00 mon-fri".'
)
ON_INVALID_HELP = (
    "What invalid lines do to their batch: `fail` it (if not given), or `skip`: they end in its"
    " error file, and the others run."
)
OVERLAP_HELP = (
    "While the previous run has not ended: `skip` (if not given), `buffer_one`, `allow` or"
    " `cancel_previous`."
)
MISFIRE_HELP = (
    "Of the fires missed while the service was down, make up for the `latest` (if not given), `all`"
    " or `none`."
)
CATCH_UP_HELP = (
    "Age up to which a missed fire is made up for, such as `30m`, `12h` or `7d`; 12h if not given."
)


@dataclass(frozen=True, kw_only=True)
class Given:
    """The given options. None stands for the default of the server, or the current value."""

    file: Annotated[Path | None, _what(FILE_HELP, metavar="PATH")] = None
    file_id: Annotated[
        str | None, _what("Run this uploaded file unchanged every time.", metavar="FILE-ID")
    ] = None
    template: Annotated[Path | None, _what(TEMPLATE_HELP, metavar="PATH")] = None
    template_id: Annotated[
        str | None, _what("Fill in the placeholders of this uploaded file.", metavar="FILE-ID")
    ] = None
    prefix: Annotated[str | None, _what(PREFIX_HELP, metavar="PREFIX")] = None
    folder: Annotated[str | None, _what(FOLDER_HELP, metavar="FOLDER")] = None
    inbox: Annotated[
        bool,
        typer.Option(
            "--inbox",
            help="Run the requests that `schedules add` has put in since the last run.",
            rich_help_panel=WHAT,
        ),
    ] = False
    pattern: Annotated[
        str | None,
        _what("Names to take below the prefix or folder; `*.jsonl` if not given.", metavar="GLOB"),
    ] = None
    ready_marker: Annotated[
        str | None,
        _what(
            "Wait for an object of this name below the prefix or folder, for as long as the"
            " catch-up window.",
            metavar="NAME",
        ),
    ] = None
    on_empty: Annotated[
        OnEmpty | None,
        _what(
            "What to do without input: `skip` the run (if not given) or `fail` it.",
            metavar="skip|fail",
        ),
    ] = None
    repeat: Annotated[
        bool | None,
        typer.Option(
            "--repeat/--no-repeat",
            help="Take objects again that an earlier run has taken.",
            rich_help_panel=WHAT,
        ),
    ] = None
    timezone: Timezone = None
    starts: Starts = None
    ends: Ends = None
    jitter: Jitter = None
    endpoint: Annotated[
        str | None, _how(ENDPOINT_HELP, metavar="/v1/…", callback=check_endpoint)
    ] = None
    window: Annotated[str | None, _how(WINDOW_HELP, metavar="TIME", callback=check_window)] = None
    metadata: Annotated[list[str] | None, _how(METADATA_HELP, metavar="KEY=VALUE")] = None
    execution_window: Annotated[str | None, _how(EXECUTION_HELP, metavar="HOURS")] = None
    on_invalid: Annotated[OnInvalid | None, _how(ON_INVALID_HELP, metavar="fail|skip")] = None
    overlap: Annotated[Overlap | None, _how(OVERLAP_HELP, metavar="POLICY")] = None
    misfire: Annotated[Misfire | None, _how(MISFIRE_HELP, metavar="POLICY")] = None
    misfire_limit: Annotated[
        int | None,
        _how(
            "With `--misfire all`, the most fires to make up for; 10 if not given.",
            metavar="N",
            min=1,
            max=100,
        ),
    ] = None
    catch_up: Annotated[
        str | None, _how(CATCH_UP_HELP, metavar="TIME", callback=check_catch_up)
    ] = None
    pause_on_failure: Annotated[
        int | None,
        _how("Pause after this many failed runs in a row.", metavar="N", min=1, max=1000),
    ] = None
