"""`audit`: the log of changes to keys, prices, schedules and invoices, for the operator."""

import re
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

import typer

from xalen_batch.cli import clock, database
from xalen_batch.cli.options import Json, examples
from xalen_batch.cli.output import moment, pairs, print_list, say, say_more, show
from xalen_batch.cli.stacked import Layout, stacked

ENTRIES: tuple[Layout, ...] = (
    (("at",), ("who",), ("what",), ("of",), ("mode",), ("change",)),
    (("at", "who"), ("what", "of", "mode"), ("change",)),
    (("at", "who", "what", "mode"), ("of", "change")),
)
# The format of a time in the log, in microseconds.
UTC_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?\+00:00")
MODES = {None: "-", False: "test", True: "live"}

commands = typer.Typer()


@commands.command(
    rich_help_panel="Operators",
    epilog=examples(
        "xalen-batch audit",
        "xalen-batch audit --since 24h",
        "xalen-batch audit --since 2026-11-01 --json",
        "xalen-batch audit --of key_0192…",
    ),
)
def audit(
    since: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Only changes since then: `24h`, `7d`, or a time in UTC such as 2026-11-01.",
        ),
    ] = None,
    of: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Only changes of this key, price, schedule or invoice."),
    ] = None,
    limit: Annotated[
        int, typer.Option(min=1, metavar="N", help="Most changes to show, the newest.")
    ] = 100,
    as_json: Json = False,
) -> None:
    """Show who changed keys, prices, schedules and invoices, and when; the newest change last."""
    found = _entries(None if since is None else _start(since), of, limit + 1)
    has_more, found = len(found) > limit, found[-limit:]
    if as_json:
        print_list(found, has_more=has_more)
        return
    if not found:
        say(
            "No changes yet."
            if since is None and of is None
            else "No change matches --since and --of."
        )
        return
    rows = [
        (
            moment(int(datetime.fromisoformat(entry["at"]).timestamp())),
            entry["actor"],
            entry["action"],
            entry["object_id"],
            MODES[entry["livemode"]],
            _change(entry),
        )
        for entry in found
    ]
    show(stacked(ENTRIES, rows, folded=("who", "change")))
    if has_more:
        say_more(limit)


def _entries(since: datetime | None, object_id: str | None, limit: int) -> list[dict[str, Any]]:
    """The latest changes, the newest last, as `--json` prints them."""
    with database.transaction() as session:
        from xalen_batch import ids
        from xalen_batch.accounts import audit

        return [
            {
                "at": entry.at.astimezone(UTC).isoformat(),
                "actor": entry.actor,
                "action": entry.action,
                "object_id": entry.object_id,
                "account_id": entry.account_id and ids.render("acct", entry.account_id),
                "livemode": entry.livemode,
                "before": _public(entry.before),
                "after": _public(entry.after),
            }
            for entry in audit.entries(session, since=since, object_id=object_id, limit=limit)
        ]


def _public(values: dict[str, Any] | None) -> dict[str, Any] | None:
    """The columns of a row of the audit log, with ids in their public form."""
    from xalen_batch import ids

    def shown(name: str, value: Any) -> Any:
        if not (name.endswith("_id") and isinstance(value, str)):
            return value
        try:
            return ids.shown(name, UUID(value))
        except ValueError:
            return value

    return values and {name: shown(name, value) for name, value in values.items()}


def _start(text: str) -> datetime:
    if text[-1:] in clock.LENGTHS:
        return datetime.now(UTC) - clock.duration(text, "--since")
    start = datetime.fromisoformat(clock.moment(text, "--since"))
    return start if start.tzinfo else start.replace(tzinfo=UTC)


def _change(entry: dict[str, Any]) -> str:
    """`name=nightly` for a new value, `status=active → paused` for a changed one."""
    before, after = entry["before"] or {}, entry["after"] or {}
    if not before:
        return pairs({name: _plain(value) for name, value in after.items()})
    return pairs({name: _moved(before.get(name), after.get(name)) for name in {**before, **after}})


def _moved(before: Any, after: Any) -> str:
    return _plain(after) if before == after else f"{_plain(before)} → {_plain(after)}"


def _plain(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, list):
        return ",".join(map(str, value))
    return (
        f"{datetime.fromisoformat(value):%Y-%m-%dT%H:%M:%SZ}"
        if UTC_TIME.fullmatch(str(value))
        else str(value)
    )
