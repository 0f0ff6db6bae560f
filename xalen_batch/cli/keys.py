"""`keys`: accounts' API keys, for the operator."""

from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from xalen_batch.cli import clock, database
from xalen_batch.cli.batch_options import usage_error
from xalen_batch.cli.failures import Failed
from xalen_batch.cli.group import Group
from xalen_batch.cli.options import Json, examples
from xalen_batch.cli.output import print_json, print_line, print_list, say, show
from xalen_batch.cli.roster import new_name
from xalen_batch.cli.stacked import Layout, stacked

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from xalen_batch.models import Account, ApiKey

commands = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    help="Make, list, rotate and revoke API keys (operators).",
    epilog=examples(
        "xalen-batch keys create --account acme --create-account",
        "xalen-batch keys rotate key_0192…",
    ),
)
KEYS: tuple[Layout, ...] = (
    (
        ("id",),
        ("key",),
        ("mode",),
        ("account",),
        ("name",),
        ("scopes",),
        ("last used",),
        ("state",),
    ),
    (("id", "key"), ("mode", "account", "name"), ("scopes", "last used", "state")),
)


def _key_id(text: str) -> str:
    if not text.startswith("key_"):
        raise typer.BadParameter(
            f"{text!r} is not the id of a key, `key_…`. `xalen-batch keys list` shows the ids."
        )
    return text


KeyId = Annotated[str, typer.Argument(metavar="ID", help="The key, `key_…`.", callback=_key_id)]


class Mode(StrEnum):
    TEST = "test"
    LIVE = "live"


@commands.command(
    epilog=examples(
        "xalen-batch keys create --account acme --mode test --create-account",
        "xalen-batch keys create --account acme --mode live --scopes submit,read --expires"
        " 2027-12-31",
    )
)
def create(
    account: Annotated[
        str, typer.Option(metavar="NAME", help="The account's name, from `accounts list`.")
    ],
    mode: Annotated[
        Mode, typer.Option(help="Test keys run on simulated models and are never billed.")
    ] = Mode.TEST,
    name: Annotated[str, typer.Option(metavar="TEXT", help="What the key is for.")] = "cli",
    scopes: Annotated[
        str | None,
        typer.Option(
            metavar="SCOPES",
            help="Comma-separated: submit, read, billing, admin. If not given: all but admin.",
        ),
    ] = None,
    expires: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="When the key expires, UTC: `2027-12-31` or `2027-12-31T18:00:00`."
        ),
    ] = None,
    create_account: Annotated[
        bool, typer.Option("--create-account", help="Create the account first if its name is new.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make a key. Its secret is printed now and never again."""
    expires_at = None if expires is None else _moment_to_come(expires)
    with database.transaction() as session:
        from xalen_batch.accounts import keys
        from xalen_batch.accounts.accounts import ORDINARY, Owner

        owner = Owner(
            _account(session, account, may_create=create_account).id, livemode=mode is Mode.LIVE
        )
        with usage_error():
            key, secret = keys.create(
                session,
                owner,
                name=name,
                scopes=scopes.split(",") if scopes else ORDINARY,
                expires_at=expires_at,
            )
    _show_secret(key, secret, account, as_json)


def _show_secret(key: "ApiKey", secret: str, account: str, as_json: bool) -> None:
    from xalen_batch import ids

    key_id = ids.render("key", key.id)
    if as_json:
        print_json({"id": key_id, "secret": secret, "account": account, "livemode": key.livemode})
        return
    print_line(secret)
    mode = Mode.LIVE if key.livemode else Mode.TEST
    say(
        f"{key_id} of account {account!r}, {mode} mode. Keep the secret: it is stored nowhere and"
        " not shown again."
    )


def _moment_to_come(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is not a time. Write it as 2027-12-31T18:00:00, UTC.", param_hint="--expires"
        ) from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    if moment <= datetime.now(UTC):
        raise typer.BadParameter(
            f"{text} is over. Name a moment to come, UTC.", param_hint="--expires"
        )
    return moment


def _account(session: "Session", name: str, *, may_create: bool) -> "Account":
    from xalen_batch.accounts import accounts
    from xalen_batch.errors import NotFound

    try:
        return accounts.named(session, name)
    except NotFound as error:
        if may_create:
            return accounts.create(session, new_name(name))
        raise Failed(f"{error} To make it now, add --create-account.") from None


@commands.command("list", epilog=examples("xalen-batch keys list", "xalen-batch keys list --json"))
def list_keys(as_json: Json = False) -> None:
    """List every key, the revoked ones too; never a secret."""
    with database.transaction() as session:
        from sqlalchemy import select

        from xalen_batch import ids
        from xalen_batch.accounts import keys
        from xalen_batch.models import Account

        names = {account.id: account.name for account in session.scalars(select(Account))}
        found: list[dict[str, Any]] = [
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
                "rotated_from": key.rotated_from and ids.render("key", key.rotated_from),
            }
            for key in keys.every(session)
        ]
    if as_json:
        print_list(found)
        return
    if not found:
        say("No keys yet. `xalen-batch keys create --account NAME --create-account` makes one.")
        return
    rows = [
        (
            *(key["id"], f"{key['prefix']}…", _mode(key), key["account"], key["name"]),
            *(",".join(key["scopes"]), _day(key["last_used_at"]), _state(key)),
        )
        for key in found
    ]
    show(stacked(KEYS, rows, folded=("account", "name", "scopes")))


@commands.command(
    epilog=examples(
        "xalen-batch keys rotate key_0192…",
        "xalen-batch keys rotate key_0192… --overlap 0",
        "xalen-batch keys rotate key_0192… --json",
    )
)
def rotate(
    key_id: KeyId,
    overlap: Annotated[
        str,
        typer.Option(
            metavar="TIME",
            help="How long the old key still works: `30m`, `24h`, `7d`, or `0`; at most 30d.",
        ),
    ] = "24h",
    as_json: Json = False,
) -> None:
    """Make a key that takes the place of another: same account, mode, name and scopes. Its secret
    is printed now and never again.

    The old key expires after the overlap. One that has an end gets as long a life again.
    """
    length = clock.duration(overlap, "--overlap")
    with database.transaction() as session:
        from xalen_batch.accounts import keys
        from xalen_batch.models import Account

        with usage_error("--overlap"):
            keys.check_overlap(length)
        old = keys.lock(session, key_id)
        new, secret = keys.rotate(session, old, length)
        account = session.get_one(Account, old.account_id).name
    _show_secret(new, secret, account, as_json)
    say(f"{key_id} expires {clock.utc(_seconds(old.expires_at))}.")


@commands.command(
    epilog=examples("xalen-batch keys revoke key_0192…", "xalen-batch keys revoke key_0192… --json")
)
def revoke(key_id: KeyId, as_json: Json = False) -> None:
    """Refuse a key from now on."""
    with database.transaction() as session:
        from xalen_batch.accounts import keys

        key = keys.lock(session, key_id)
        keys.revoke(session, key)
    if as_json:
        print_json({"id": key_id, "revoked_at": _seconds(key.revoked_at)})
        return
    say(f"{key_id} is revoked.")


def _mode(key: dict[str, Any]) -> Text:
    """The mode of a key. `LIVE` is in colour and capitals: live keys spend money."""
    return Text("LIVE", style="bold red") if key["livemode"] else Text("test", style="dim")


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
