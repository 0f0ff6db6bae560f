"""`accounts list`, `create`, `rename`, `weight`, `disable`, `enable`, for the operator."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from xalen_batch.cli import database
from xalen_batch.cli.options import Json, examples
from xalen_batch.cli.output import figure, moment, print_json, print_list, safe, say, show
from xalen_batch.cli.stacked import Layout, stacked

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from xalen_batch.models import Account

commands = typer.Typer()
Name = Annotated[str, typer.Argument(metavar="NAME", help="The account's name.")]
LONGEST_NAME = 200
ACCOUNTS: tuple[Layout, ...] = (
    (("id",), ("name",), ("weight",), ("keys",), ("open batches",), ("state",)),
    (("id", "name"), ("weight", "keys", "open batches"), ("state",)),
)


def new_name(text: str) -> str:
    """A name for an account, without surrounding blanks."""
    name = text.strip()
    if not name or len(name) > LONGEST_NAME or not name.isprintable():
        raise typer.BadParameter(
            f"{text!r} is not a name. Use 1 to {LONGEST_NAME} printable characters."
        )
    return name


NewName = Annotated[
    str, typer.Argument(metavar="NAME", callback=new_name, help="A name that no other account has.")
]


@commands.command(
    "list", epilog=examples("xalen-batch accounts list", "xalen-batch accounts list --json")
)
def list_accounts(as_json: Json = False) -> None:
    """List every account with its weight, its usable keys and its open batches (operators)."""
    with database.transaction() as session:
        from xalen_batch.accounts import accounts

        keys, open_batches = _usable_keys(session), _open_batches(session)
        found = [
            _shown(account)
            | {
                "keys": keys.get(account.id, 0),
                "open_batches": open_batches.get(account.id, 0),
            }
            for account in accounts.every(session)
        ]
    if as_json:
        print_list(found)
        return
    if not found:
        say("No account yet. `xalen-batch accounts create NAME` makes one.")
        return
    rows = [
        (
            one["id"],
            one["name"],
            figure(one["weight"]),
            figure(one["keys"]),
            figure(one["open_batches"]),
            _state(one),
        )
        for one in found
    ]
    show(stacked(ACCOUNTS, rows, right=("weight", "keys", "open batches"), folded=("name",)))


@commands.command(
    epilog=examples(
        "xalen-batch accounts create acme", "xalen-batch accounts create acme --weight 4"
    )
)
def create(
    name: NewName,
    weight: Annotated[
        int,
        typer.Option(
            metavar="N", min=1, max=1_000, help="Its share of busy backends; see `accounts weight`."
        ),
    ] = 1,
    as_json: Json = False,
) -> None:
    """Make an account. `keys create` then makes its keys (operators)."""
    with database.transaction() as session:
        from xalen_batch.accounts import accounts

        account = accounts.create(session, name)
        accounts.weigh(session, account, weight)
    _tell(
        account,
        as_json,
        f"Account {safe(name)} is made. `xalen-batch keys create --account {safe(name)}` makes"
        " a key for it.",
    )


@commands.command(epilog=examples("xalen-batch accounts rename acme acme-eu"))
def rename(name: Name, new: NewName, as_json: Json = False) -> None:
    """Give an account another name. Its keys, batches and invoices stay with it (operators)."""
    with database.transaction() as session:
        from xalen_batch.accounts import accounts

        account = accounts.named(session, name)
        accounts.rename(session, account, new)
    _tell(account, as_json, f"Account {safe(name)} is named {safe(new)} now.")


@commands.command(
    epilog=examples("xalen-batch accounts weight acme", "xalen-batch accounts weight acme 4")
)
def weight(
    name: Name,
    number: Annotated[
        int | None,
        typer.Argument(
            metavar="[N]", min=1, max=1_000, help="Its weight from now on; shown if not given."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show or set an account's share of busy backends (operators).

    Accounts with lines waiting share a backend in proportion to their weights. With weight 4, four
    of an account's lines run for one of an account with weight 1.
    """
    with database.transaction() as session:
        from xalen_batch.accounts import accounts

        account = accounts.named(session, name)
        if number is not None:
            accounts.weigh(session, account, number)
    _tell(account, as_json, f"Account {safe(name)} has weight {account.weight}.")


@commands.command(
    epilog=examples(
        "xalen-batch accounts disable acme", "xalen-batch accounts disable acme --cancel-batches"
    )
)
def disable(
    name: Name,
    cancel_batches: Annotated[
        bool,
        typer.Option(
            "--cancel-batches", help="Also cancel its open batches; lines that ended are kept."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Refuse an account's keys with 403 and start no run of its schedules.

    Open batches go on unless cancelled (operators).
    """
    cancelled = 0
    with database.transaction() as session:
        from xalen_batch.accounts import accounts

        account = accounts.named(session, name)
        accounts.disable(session, account)
        if cancel_batches:
            cancelled = _cancel_open(session, account)
    extra = f" Open batches cancelled: {figure(cancelled)}." if cancel_batches else ""
    _tell(account, as_json, f"Account {safe(name)} is disabled.{extra}")


@commands.command(epilog=examples("xalen-batch accounts enable acme"))
def enable(name: Name, as_json: Json = False) -> None:
    """Accept a disabled account's keys again.

    Its schedules go on by their misfire policy (operators).
    """
    with database.transaction() as session:
        from xalen_batch.accounts import accounts

        account = accounts.named(session, name)
        accounts.enable(session, account)
    _tell(account, as_json, f"Account {safe(name)} is enabled.")


def _cancel_open(session: "Session", account: "Account") -> int:
    """Cancel all batches of the account that can be cancelled; returns their number."""
    from sqlalchemy import select

    from xalen_batch.batches import batches
    from xalen_batch.models import Batch
    from xalen_batch.states import BatchStatus

    may_be = [BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS]
    rows = (
        select(Batch)
        .where(Batch.account_id == account.id, Batch.status.in_(may_be))
        .order_by(Batch.id)
        .with_for_update()
    )
    found = session.scalars(rows).all()
    for batch in found:
        batches.cancel(session, batch)
    return len(found)


def _usable_keys(session: "Session") -> dict[Any, int]:
    from sqlalchemy import func, or_, select

    from xalen_batch.models import ApiKey

    usable = ApiKey.revoked_at.is_(None) & or_(
        ApiKey.expires_at.is_(None), ApiKey.expires_at > func.now()
    )
    rows = session.execute(
        select(ApiKey.account_id, func.count()).where(usable).group_by(ApiKey.account_id)
    )
    return {row[0]: row[1] for row in rows}


def _open_batches(session: "Session") -> dict[Any, int]:
    from sqlalchemy import func, select, text

    from xalen_batch.models import Batch
    from xalen_batch.models.batches import OPEN

    rows = session.execute(
        select(Batch.account_id, func.count()).where(text(OPEN)).group_by(Batch.account_id)
    )
    return {row[0]: row[1] for row in rows}


def _shown(account: "Account") -> dict[str, Any]:
    from xalen_batch import ids

    return {
        "id": ids.render("acct", account.id),
        "name": account.name,
        "weight": account.weight,
        "created_at": int(account.created_at.timestamp()),
        "disabled_at": (
            None if account.disabled_at is None else int(account.disabled_at.timestamp())
        ),
    }


def _state(account: dict[str, Any]) -> str:
    return (
        "active"
        if account["disabled_at"] is None
        else f"disabled {moment(account['disabled_at'])[:10]}"
    )


def _tell(account: "Account", as_json: bool, words: str) -> None:
    if as_json:
        print_json(_shown(account))
    else:
        say(words)
