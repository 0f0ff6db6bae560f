"""`accounts`: its commands, and the quotas and the simulated answers of one account."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from xalen_batch.cli import database, roster, usage
from xalen_batch.cli.group import Group
from xalen_batch.cli.keys import Mode
from xalen_batch.cli.limits import NAMES
from xalen_batch.cli.options import Json, examples
from xalen_batch.cli.output import figure, grid, print_json, print_list, safe, say, show

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from xalen_batch.accounts.accounts import Owner

# Values of an option other than a number.
NONE, DEFAULT = "none", "default"
NUMBER = "a number, `none` for no limit, or `default` for that of the settings"

commands = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    help="List, make, rename, weigh and disable accounts, and set what they may hold (operators).",
    epilog=examples(
        "xalen-batch accounts list",
        "xalen-batch accounts usage --month 2026-11",
        "xalen-batch accounts limits acme --open-batches 500",
    ),
)
for part in (roster, usage):
    commands.add_typer(part.commands)


def _number(text: str | None) -> str | None:
    if (
        text is not None
        and text not in (NONE, DEFAULT)
        and not (text.isascii() and text.isdigit() and int(text) < 2**63)
    ):
        raise typer.BadParameter(f"{text!r} is not {NUMBER}.")
    return text


def _rate(text: str | None) -> str | None:
    if text is not None and text.isdigit() and int(text) == 0:
        raise typer.BadParameter(
            "0 would shut the account out. Revoke its keys, or allow one request at least."
        )
    return _number(text)


@commands.command(
    epilog=examples(
        "xalen-batch accounts limits acme",
        "xalen-batch accounts limits acme --mode live --open-batches 500 --enqueued-tokens"
        " 2000000000",
        "xalen-batch accounts limits acme --storage-bytes none --requests-per-second default",
        "xalen-batch accounts limits acme --json",
    )
)
def limits(
    account: Annotated[str, typer.Argument(metavar="NAME", help="The account's name.")],
    mode: Annotated[Mode | None, typer.Option(help="Only of this mode; both unless given.")] = None,
    open_batches: Annotated[
        str | None,
        typer.Option(
            metavar="N", callback=_number, help=f"Most batches that have not ended: {NUMBER}."
        ),
    ] = None,
    enqueued_lines: Annotated[
        str | None, typer.Option(metavar="N", callback=_number, help="Most lines in those batches.")
    ] = None,
    enqueued_tokens: Annotated[
        str | None,
        typer.Option(metavar="N", callback=_number, help="Most input tokens in those batches."),
    ] = None,
    files: Annotated[
        str | None, typer.Option(metavar="N", callback=_number, help="Most files.")
    ] = None,
    storage_bytes: Annotated[
        str | None,
        typer.Option(
            metavar="N", callback=_number, help="Most bytes in files, pending uploads and inboxes."
        ),
    ] = None,
    pending_uploads: Annotated[
        str | None,
        typer.Option(metavar="N", callback=_number, help="Most uploads in parts that are pending."),
    ] = None,
    schedules: Annotated[
        str | None, typer.Option(metavar="N", callback=_number, help="Most schedules.")
    ] = None,
    waiting_runs: Annotated[
        str | None,
        typer.Option(metavar="N", callback=_number, help="Most schedule runs that wait to start."),
    ] = None,
    inbox_requests: Annotated[
        str | None, typer.Option(metavar="N", callback=_number, help="Most requests in inboxes.")
    ] = None,
    api_keys: Annotated[
        str | None,
        typer.Option(metavar="N", callback=_number, help="Most API keys that can be used."),
    ] = None,
    webhooks: Annotated[
        str | None, typer.Option(metavar="N", callback=_number, help="Most webhooks.")
    ] = None,
    idempotency_keys: Annotated[
        str | None, typer.Option(metavar="N", callback=_number, help="Most idempotency keys kept.")
    ] = None,
    requests_per_second: Annotated[
        str | None,
        typer.Option(
            metavar="N", callback=_rate, help="Most API requests in a second; in force within five."
        ),
    ] = None,
    changes_per_minute: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            callback=_rate,
            help="Most of them in a minute that change something; in force within five seconds.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show an account's quotas and their use; options set quotas first (operators)."""
    given = {
        "open_batches": open_batches,
        "enqueued_lines": enqueued_lines,
        "enqueued_tokens": enqueued_tokens,
        "files": files,
        "storage_bytes": storage_bytes,
        "pending_uploads": pending_uploads,
        "schedules": schedules,
        "waiting_runs": waiting_runs,
        "inbox_requests": inbox_requests,
        "api_keys": api_keys,
        "webhooks": webhooks,
        "idempotency_keys": idempotency_keys,
        "requests_per_second": requests_per_second,
        "changes_per_minute": changes_per_minute,
    }
    modes = [mode] if mode else list(Mode)
    with database.transaction() as session:
        owners = {of: _owner(session, account, of) for of in modes}
        for owner in owners.values():
            _set(
                session, owner, {name: value for name, value in given.items() if value is not None}
            )
        found: list[dict[str, Any]] = [
            {"account": account, "livemode": of is Mode.LIVE, "quotas": _standings(session, owner)}
            for of, owner in owners.items()
        ]
    if as_json:
        print_list(found)
        return
    rows = [
        (
            "live" if one["livemode"] else "test",
            NAMES[name],
            _cell(standing["used"], "-"),
            _cell(standing["limit"], NONE),
            standing["source"],
        )
        for one in found
        for name, standing in one["quotas"].items()
    ]
    show(grid(("mode", "limit of", "used", "limit", "set by"), rows, right=("used", "limit")))


@commands.command(
    epilog=examples(
        "xalen-batch accounts simulation acme",
        "xalen-batch accounts simulation acme --allow",
        "xalen-batch accounts simulation acme --forbid",
    )
)
def simulation(
    account: Annotated[str, typer.Argument(metavar="NAME", help="The account's name.")],
    allow: Annotated[
        bool | None,
        typer.Option(
            "--allow/--forbid",
            help="Whether new live batches may name them; they are billed as any other.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show or set whether an account's live keys may have the answers of models that the catalog
    calls simulated (operators).
    """
    with database.transaction() as session:
        from xalen_batch.accounts import accounts

        owner = _owner(session, account, Mode.LIVE)
        if allow is not None:
            accounts.let_simulate(session, owner.account_id, allow)
        is_allowed = accounts.may_simulate(session, owner.account_id)
    if as_json:
        print_json({"account": account, "simulated_live": is_allowed})
    elif is_allowed:
        say(
            f"Live batches of {safe(account)} may name simulated models. Their invoices say so, and"
            " are payable.",
            style="yellow",
        )
    else:
        say(f"Live batches of {safe(account)} that name a simulated model are refused.")


def _owner(session: "Session", name: str, mode: Mode) -> "Owner":
    from xalen_batch.accounts import accounts
    from xalen_batch.accounts.accounts import Owner

    return Owner(accounts.named(session, name).id, mode is Mode.LIVE)


def _set(session: "Session", owner: "Owner", given: dict[str, str]) -> None:
    from xalen_batch.accounts import quotas
    from xalen_batch.accounts.quotas import Quota

    for name, value in given.items():
        if value == DEFAULT:
            quotas.reset(session, owner, Quota(name))
        else:
            quotas.change(session, owner, {Quota(name): None if value == NONE else int(value)})


def _standings(session: "Session", owner: "Owner") -> dict[str, dict[str, Any]]:
    from xalen_batch.accounts import quotas

    held, own = quotas.held(session, owner), quotas.given(session, owner)
    return {
        quota.value: {
            "used": held.get(quota),
            "limit": limit,
            "source": "operator" if quota in own else "settings",
        }
        for quota, limit in quotas.limits(session, owner).items()
    }


def _cell(number: int | None, without: str) -> str:
    return without if number is None else figure(number)
