"""Checks of `doctor` on the catalog, its prices, and the model servers."""

import json
import os
import ssl
from collections.abc import Callable
from functools import partial
from http.client import HTTPException
from typing import TYPE_CHECKING
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from xalen_batch.cli.connection import LOOPBACK
from xalen_batch.cli.doctor.findings import Doubtful, Skipped, Wrong, first_line

if TYPE_CHECKING:
    from xalen_batch.catalog import Model

# Seconds.
BACKEND_TIMEOUT = 3.0
LONGEST_LISTING = 4 * 1024 * 1024
# A finding names this many models of a backend, each cut to this many characters.
MOST_NAMES, LONGEST_NAME = 10, 80
# An unreachable backend is a warning: no work is lost, and test keys need no backend.
WAITING = "Live requests to this model wait until that is put right."

# The finding for a kind of backend without a server.
NO_SERVER = {
    None: (
        "The catalog names no server: live batches of this model are refused. Set base_url in"
        " [models.{}.backend]."
    ),
    "simulated": (
        'kind = "simulated" in [models.{}.backend]: live keys of accounts that `xalen-batch'
        " accounts simulation` allows get simulated answers, and pay for them. Live batches of all"
        " others are refused."
    ),
}


def catalog_models() -> str:
    from xalen_batch import catalog

    return f"{', '.join(catalog.models())}, of {catalog.source()}"


def catalog_prices(has_database: bool) -> str:
    if not has_database:
        raise Skipped("not checked: no database")
    from xalen_batch import db, migrate
    from xalen_batch.billing import prices

    if not migrate.is_usable():
        raise Skipped("not checked: the database needs a migration")
    with db.reading() as session:
        unpriced, changes = prices.unpriced(session), prices.differences(session)
    remedy = (
        "`xalen-batch prices sync` shows the differences and puts the catalog's prices in force."
    )
    if unpriced:
        raise Doubtful(
            f"Batches that name {', '.join(unpriced)} are refused, for want of a price in force."
            f" {remedy}"
        )
    if changes:
        models = ", ".join(sorted({change.model for change in changes}))
        raise Doubtful(
            f"Prices in force differ from the catalog's ({models}); new batches pay those in force."
            f" {remedy}"
        )
    return "those of the catalog"


def backends() -> "list[tuple[str, Callable[[], str]]]":
    """A check for each server of each model, with its name."""
    from xalen_batch import catalog
    from xalen_batch.catalog_backend import shown
    from xalen_batch.errors import ConfigError

    try:
        found = catalog.models().values()
    except ConfigError:
        # Reported by the check of the catalog.
        return []
    checks: list[tuple[str, Callable[[], str]]] = []
    for model in found:
        name, urls = f"backend of {model.id}", model.backend.urls
        if len(urls) < 2:
            checks.append((name, partial(backend, model, "".join(urls))))
        checks += [
            (f"{name}, {shown(url)}", partial(backend, model, url)) for url in urls[1:] and urls
        ]
    return checks


def backend(model: "Model", url: str) -> str:
    from xalen_batch.catalog_backend import is_address, shown
    from xalen_batch.errors import ConfigError

    config, name = model.backend, shown(url)
    if config.kind != "openai":
        raise Doubtful(NO_SERVER[config.kind].format(model.id))
    if not is_address(url):
        raise Wrong(
            f"base_url of models.{model.id}.backend in the catalog is {name}. It looks like"
            " http://host:8000/v1."
        )
    try:
        headers, certificates = config.request_headers(), config.ca_certificates()
    except ConfigError as error:
        raise Wrong(str(error)) from None
    empty = [variable for variable in config.variables if not os.environ.get(variable, "").strip()]
    unset = "".join(
        f" {variable}, which is to hold its key, is not set."
        if variable == config.api_key_env
        else f" {variable}, which is to hold a header, is not set."
        for variable in empty
    )
    has_key = config.auth_name.lower() in headers
    try:
        status, listing = _listing(Request(f"{url}/models", headers=headers), certificates)
    except (OSError, HTTPException) as error:
        raise Doubtful(f"{name} cannot be reached: {_reason(error)}.{unset} {WAITING}") from error
    if status in (401, 403):
        finding = f"asks for a key.{unset or ' The catalog names no api_key_env.'}"
        if has_key:
            finding = f"refuses the key in {config.api_key_env}."
        raise Doubtful(f"{name} {finding} {WAITING}")
    if status >= 500:
        raise Doubtful(f"{name} answers with status {status}; its log tells why.{unset}")
    parts = urlsplit(url)
    if has_key and parts.scheme == "http" and parts.hostname not in LOOPBACK:
        raise Doubtful(
            f"{name} answers, and the key in {config.api_key_env} goes there unencrypted. Use"
            " https:// where others share the network."
        )
    _check_name(model, name, listing)
    # Any other status is fine: a reranking server need not list its models.
    return f"{name} answers.{unset}" if unset else name


def _listing(asked: Request, certificates: "list[bytes]") -> tuple[int, bytes]:
    """The status, and the body of a 200 up to LONGEST_LISTING bytes."""
    trusted = ssl.create_default_context()
    if certificates:
        trusted.load_verify_locations(cadata=b"\n".join(certificates).decode("ascii", "replace"))
    try:
        with urlopen(asked, timeout=BACKEND_TIMEOUT, context=trusted) as answer:
            return int(answer.status), answer.read(LONGEST_LISTING)
    except HTTPError as error:
        with error:
            return error.code, b""


def _check_name(model: "Model", url: str, listing: bytes) -> None:
    """Raise Doubtful if the server lists its models, but not the name that requests carry."""
    try:
        names = [str(entry["id"]) for entry in json.loads(listing)["data"]]
    except (ValueError, TypeError, KeyError, RecursionError):
        return
    sent = model.backend.model or model.id
    # For Ollama, a name without a tag means the tag `latest`.
    if not names or sent in names or f"{sent}:latest" in names:
        return
    shown = ", ".join(name[:LONGEST_NAME] for name in names[:MOST_NAMES])
    if len(names) > MOST_NAMES:
        shown += f" and {len(names) - MOST_NAMES} more"
    raise Doubtful(
        f"{url} does not list {sent}, the name that requests carry. It has {shown}. Set"
        f" models.{model.id}.backend.model in the catalog to one of them; a server that refuses the"
        " name makes live requests wait."
    )


def _reason(error: Exception) -> str:
    cause = getattr(error, "reason", error)
    return getattr(cause, "strerror", None) or first_line(cause)
