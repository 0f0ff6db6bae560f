"""`models add`: from an address to an entry of the catalog."""

import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from xalen_batch.catalog_backend import BackendConfig
from xalen_batch.cli.failures import USAGE, Failed
from xalen_batch.cli.model_servers import endpoints as probing
from xalen_batch.cli.model_servers import entry, kinds
from xalen_batch.cli.model_servers.kinds import Kind, ServedModel
from xalen_batch.cli.model_servers.server import Server
from xalen_batch.endpoints.names import CHAT, EMBEDDINGS, ENDPOINTS, RERANK, RESPONSES, Endpoint

# Bounds of the ramp, which are said before it begins.
RAMP_SECONDS, RAMP_REQUESTS, RAMP_MOST = 15.0, 600, 128
# A model's first request may load it into memory.
FIRST_TIMEOUT = 120.0
MOST_NAMES = 20
# The proposal without a ramp and without a word of the server: the catalog's default.
DEFAULT_IN_FLIGHT = 64
# Tokens of the answer whose time is written as `latency_ms`; the log warns of ten times as long.
TYPICAL_ANSWER = 64
_CATEGORIES = {RERANK: "reranking", EMBEDDINGS: "embedding"}

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Wanted:
    """The arguments of the command."""

    url: str
    name: str | None
    model: str | None
    prices: dict[str, str]
    api_key_env: str | None
    context_window: int | None
    with_ramp: bool
    is_replacing: bool


@dataclass(frozen=True, slots=True)
class Found:
    """What the server is and has, and the entry to write for it."""

    kind: Kind
    model: ServedModel
    probed: probing.Probed
    name: str
    fields: dict[str, Any]
    in_flight_reason: str
    latency: float | None


def find_out(wanted: Wanted, file: Path, say: Say) -> Found:
    """Ask the server, and make the entry. Raises Failed with the reason and the remedy."""
    from xalen_batch import catalog
    from xalen_batch.catalog_backend import is_address, shown

    if not is_address(wanted.url):
        url = shown(wanted.url)
        raise Failed(f"{url} is no address. It looks like http://host:8000/v1.", USAGE)
    headers = _headers(wanted.api_key_env)

    def at(url: str) -> Server:
        return Server(url, headers, timeout=FIRST_TIMEOUT)

    say(f"Asking {shown(wanted.url)} …")
    try:
        kind = kinds.find(at(wanted.url), at)
    except kinds.NotAServer as error:
        raise Failed(_no_server(shown(wanted.url), str(error), wanted.api_key_env)) from None
    served = _chosen(kind, wanted.model)
    name = wanted.name or entry.name_of(served.id)
    known = entry.read(file).get("models", {}).get(name, {})
    if known.get("backend") and not wanted.is_replacing:
        raise Failed(
            f"{file} has a backend of {name} already. Name this one with --as, replace the other"
            " with --replace, or add the address to its base_urls.",
            USAGE,
        )
    probed = probing.probe(at(kind.base_url), served.id, say)
    if not probed.endpoints:
        endpoint, words = next(iter(probed.errors.items()))
        raise Failed(f"{served.id} answers no endpoint. Of {endpoint} it says: {words}")
    if wanted.context_window:
        served = replace(served, context_window=wanted.context_window, note="")
    elif kind.name == "Ollama":
        served = kinds.ollama_context(at(kind.base_url), served)
    usable, is_reranker = _with_translated(probed.endpoints), RERANK in probed.endpoints
    shipped = catalog.read(None).get(name)
    fields = _described(kind, served, name, usable, has_description=shipped is not None)
    prices = _prices(wanted.prices, known, shipped, usable, is_reranker=is_reranker)
    if prices:
        fields["price"] = prices
    fields["backend"] = _backend(kind, served, probed, name, shipped, wanted.api_key_env)
    if is_reranker:
        fields["backend"]["base_url"] = probed.rerank_url
    reason, latency = _set_in_flight(fields, name, served, usable[0], wanted, file, say)
    return Found(kind, served, probed, name, fields, reason, latency)


def _backend(
    kind: Kind,
    served: ServedModel,
    probed: probing.Probed,
    name: str,
    shipped: Any,
    api_key_env: str | None,
) -> dict[str, Any]:
    backend: dict[str, Any] = {"base_url": kind.base_url}
    if served.id != (name if shipped is None else shipped.backend.model or name):
        backend["model"] = served.id
    if api_key_env:
        backend["api_key_env"] = api_key_env
    most = served.most_inputs
    if EMBEDDINGS in probed.endpoints and most and most < BackendConfig().max_inputs:
        backend["max_inputs"] = most
    if RESPONSES in probed.endpoints:
        backend["has_responses"] = True
    if probed.rerank_api not in (None, "jina"):
        backend["rerank_api"] = probed.rerank_api
    return backend


def checked(file: Path, found: Found) -> None:
    """Raise ConfigError if the file would not be a valid catalog with the entry."""
    _models(file, found.name, found.fields)


def _models(file: Path, name: str, fields: dict[str, Any]) -> Any:
    import tomllib

    from xalen_batch import catalog

    text = entry.rendered(name, fields)
    return catalog.over_built_in(entry.read(file), tomllib.loads(text))[name]


def _headers(api_key_env: str | None) -> dict[str, str]:
    if api_key_env is None:
        return {}
    if not os.environ.get(api_key_env, "").strip():
        raise Failed(
            f"{api_key_env} is not set. Set it to the server's key, for this command and for the"
            " workers.",
            USAGE,
        )
    return BackendConfig(base_url="http://h", api_key_env=api_key_env).request_headers()


def _no_server(url: str, error: str, api_key_env: str | None) -> str:
    if error[:3] in ("401", "403"):
        if api_key_env:
            return f"{url} refuses the key in {api_key_env}: {error}"
        return f"{url} asks for a key: {error}. Name its variable with --api-key-env."
    if error[:1].isdigit():
        return f"{url} answers, and lists no models: {error}. Give the address with its /v1."
    return f"{url} cannot be reached: {error}."


def _chosen(kind: Kind, model: str | None) -> ServedModel:
    by_id = {served.id: served for served in kind.models}
    if model is not None:
        # For Ollama, a name without a tag means the tag `latest`.
        found = by_id.get(model) or by_id.get(f"{model}:latest")
        if found is None:
            raise Failed(f"The server does not have {model}. It has {_names(by_id)}.", USAGE)
        return found
    if len(by_id) == 1:
        return kind.models[0]
    if not by_id:
        raise Failed(f"{kind.name} answers, and has no model yet. Give it one first.")
    raise Failed(
        f"{kind.name} has {len(by_id)} models. Name one with --model: {_names(by_id)}.", USAGE
    )


def _names(ids: Any) -> str:
    names = list(ids)
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more


def _with_translated(answering: list[Endpoint]) -> list[Endpoint]:
    """The endpoints that a server answers, with those that we translate into one of them."""
    found = set(answering)
    if RERANK in found:
        return [RERANK, CHAT]
    if CHAT in found:
        found.add(RESPONSES)
    return [endpoint for endpoint in ENDPOINTS if endpoint in found]


def _described(
    kind: Kind, served: ServedModel, name: str, usable: list[Endpoint], *, has_description: bool
) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if not has_description:
        # `Qwen/Qwen3-8B` has its organization in front; a path of a file has none.
        organization, slash, _ = served.id.partition("/")
        fields |= {
            "name": served.id.rpartition("/")[2] or name,
            "owned_by": (organization if slash else "") or served.owned_by or kind.name,
            "category": _CATEGORIES.get(usable[0], "compact"),
            "parameters": served.parameters or "unknown",
        }
    if served.context_window:
        fields["context_window"] = served.context_window
    elif not has_description:
        raise Failed(
            f"The server does not say how long a prompt of {served.id} may be. Give the tokens that"
            " it was started with: --context-window 8192.",
            USAGE,
        )
    fields["endpoints"] = usable
    return fields


def _prices(
    given: dict[str, str], known: Any, shipped: Any, usable: list[Endpoint], *, is_reranker: bool
) -> dict[str, str]:
    """The prices to write; empty where the catalog has them. Raises Failed without a price."""
    needed = ["input"]
    if not is_reranker and probing.WRITING & set(usable):
        needed.append("output")
    has = set(given) | set(known.get("price", {}))
    if shipped is not None:
        has |= {component for component, price in shipped.price if price is not None}
    missing = [component for component in needed if component not in has]
    if missing and sys.stdin.isatty():
        import typer

        for component in missing:
            amount = typer.prompt(f"USD per 1M {component} tokens", type=Decimal, err=True)
            given = given | entry.prices_of(f"{component}={amount:f}")
        missing = []
    if missing:
        example = ",".join(f"{component}=0.02" for component in needed)
        raise Failed(
            f"The price of {' and '.join(missing)} tokens is missing: --price {example}, in USD per"
            " 1M tokens. A model without a price cannot be billed; a price of 0 is free.",
            USAGE,
        )
    return given


def _set_in_flight(
    fields: dict[str, Any],
    name: str,
    served: ServedModel,
    endpoint: Endpoint,
    wanted: Wanted,
    file: Path,
    say: Say,
) -> tuple[str, float | None]:
    """Set `max_in_flight`: the reason for it, and the latency of one request if it was measured."""
    from xalen_batch.backends import trial

    backend = fields["backend"]
    if served.slots:
        backend["max_in_flight"] = math.ceil(trial.SPARE * served.slots)
        reason = f"the server runs {served.slots} requests at a time, and half as many wait"
    else:
        backend["max_in_flight"] = DEFAULT_IN_FLIGHT
        reason = "the default, without a ramp"
    with_ramp = wanted.with_ramp and not served.slots
    if with_ramp:
        say(
            f"Measuring up to {RAMP_MOST} requests at a time, for at most {RAMP_SECONDS:g} s and"
            f" {RAMP_REQUESTS} requests (--no-ramp leaves it out) …"
        )
    model = _models(file, name, fields)
    measured = trial.run(
        model,
        backend["base_url"],
        endpoint,
        most=RAMP_MOST if with_ramp else 1,
        seconds=RAMP_SECONDS,
        requests=RAMP_REQUESTS if with_ramp else 2,
    )
    if measured.latency is not None:
        tokens = TYPICAL_ANSWER / trial.ANSWER_TOKENS if endpoint in probing.WRITING else 1
        fields["latency_ms"] = max(1, round(measured.latency * tokens * 1000))
    if with_ramp and measured.max_in_flight and measured.best:
        backend["max_in_flight"] = measured.max_in_flight
        reason = f"{measured.best.in_flight} at a time gave {measured.best.answers:.1f} answers/s"
    return reason, measured.latency
