"""`keys`: accounts' API keys, for the operator."""

from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xalen_batch.cli import database
from xalen_batch.cli.failures import Failed
from xalen_batch.cli.options import Json, examples
from xalen_batch.cli.output import grid, print_json, print_line, say, show

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from xalen_batch.models import Account

commands = typer.Typer(
    no_args_is_help=True, help="Make, list and revoke API keys (operators).", epilog=examples("xalen-batch keys create --account acme")
)


class Mode(StrEnum):
    TEST = "test"
    LIVE = "live"


@commands.command(
    epilog=examples(
        "xalen-batch keys create --account acme --mode test",
        "xalen-batch keys create --account acme --mode live --scopes submit,read --expires 2027-12-31",
    )
)
def create(
    account: Annotated[str, typer.Option(help="The account's name; one that is new is made.")],
    mode: Annotated[Mode, typer.Option(help="Test keys run on the simulated backend and are never billed.")] = Mode.TEST,
    name: Annotated[str, typer.Option(help="What the key is for.")] = "cli",
    scopes: Annotated[str | None, typer.Option(help="Comma-separated; all unless given: submit,read,billing.")] = None,
    expires: Annotated[
        str | None, typer.Option(metavar="TIME", help="When its use ends, UTC: `2027-12-31` or `2027-12-31T18:00:00`.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a key. Its secret is printed now and never again."""
    expires_at = None if expires is None else _moment_to_come(expires)
    with database.transaction() as session:
        from xalen_batch import accounts, ids

        key, secret = accounts.create_key(
            session,
            _account(session, account),
            livemode=mode is Mode.LIVE,
            name=name,
            scopes=scopes.split(",") if scopes else tuple(accounts.Scope),
            expires_at=expires_at,
        )
        key_id = ids.render("key", key.id)
    if as_json:
        print_json({"id": key_id, "secret": secret, "account": account, "livemode": mode is Mode.LIVE})
        return
    print_line(secret)
    say(f"{key_id} of account {account!r}, {mode} mode. Keep the secret: it is stored nowhere and not shown again.")


def _moment_to_come(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a time. Write it as 2027-12-31T18:00:00, UTC.", param_hint="--expires") from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    if moment <= datetime.now(UTC):
        raise typer.BadParameter(f"{text} is over. Name a moment to come, UTC.", param_hint="--expires")
    return moment


def _account(session: "Session", name: str) -> "Account":
    from sqlalchemy import select

    from xalen_batch import accounts
    from xalen_batch.models import Account

    return session.scalars(select(Account).where(Account.name == name)).one_or_none() or accounts.create(session, name)


@commands.command("list", epilog=examples("xalen-batch keys list", "xalen-batch keys list --json"))
def list_keys(as_json: Json = False) -> None:
    """List every key, the revoked ones too; never a secret."""
    with database.transaction() as session:
        from sqlalchemy import select

        from xalen_batch import accounts, ids
        from xalen_batch.models import Account

        names = {account.id: account.name for account in session.scalars(select(Account))}
        keys: list[dict[str, Any]] = [
            {
                "id": ids.render("key", key.id),
                "prefix": key.prefix,
                "account": names[key.account_id],
                "name": key.name,
                "livemode": key.livemode,
                "scopes": key.scopes,
                "created_at": _seconds(key.created_at),
                "last_used_at": _seconds(key.last_used_at),
                "expires_at": _seconds(key.expires_at),
                "revoked_at": _seconds(key.revoked_at),
            }
            for key in accounts.list_keys(session)
        ]
    if as_json:
        print_json(keys)
        return
    rows = [
        (key["id"], f"{key['prefix']}…", key["account"], key["name"], ",".join(key["scopes"]), _day(key["last_used_at"]), _state(key))
        for key in keys
    ]
    show(grid(("id", "key", "account", "name", "scopes", "last used", "state"), rows))


@commands.command(epilog=examples("xalen-batch keys revoke key_0192…"))
def revoke(key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id, `key_…`, from `keys list`.")]) -> None:
    """Refuse a key from now on."""
    from xalen_batch import ids

    parsed = ids.parse("key", key_id)
    if parsed is None:
        raise Failed(f"{key_id} is not the id of a key. `xalen-batch keys list` shows the ids, key_ and 32 digits.")
    with database.transaction() as session:
        from xalen_batch import accounts

        accounts.revoke_key(session, parsed)
    say(f"{key_id} is revoked.")


def _seconds(moment: datetime | None) -> int | None:
    return None if moment is None else int(moment.timestamp())


def _day(seconds: int | None) -> str:
    return "never" if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d}"


def _state(key: dict[str, Any]) -> str:
    if key["revoked_at"] is not None:
        return "revoked"
    expires_at = key["expires_at"]
    if expires_at is None:
        return "active"
    return "expired" if expires_at <= datetime.now(UTC).timestamp() else f"until {_day(expires_at)}"
