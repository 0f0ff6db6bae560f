"""What kind of server answers at an address, and which models it has.

Each kind is known by an endpoint that only it has. Fields that a server lacks stay None: versions
differ, and an address behind a gateway may answer `/v1/models` alone.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from xalen_batch.cli.model_servers.server import Server

_UNITS = (("T", 10**12), ("B", 10**9), ("M", 10**6))


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model of a server, as the server describes it.

    `slots`: requests that it runs at a time. `most_inputs`: inputs that a request may have.
    """

    id: str
    context_window: int | None = None
    parameters: str | None = None
    owned_by: str | None = None
    slots: int | None = None
    most_inputs: int | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Kind:
    """A server that answered. `base_url`: the address before `/chat/completions`."""

    name: str
    version: str | None
    base_url: str
    models: tuple[ServedModel, ...]


class NotAServer(Exception):
    """No model server answers at the address; the message says what did."""


def find(server: Server, remake: Callable[[str], Server]) -> Kind:
    """The server at an address, with or without `/v1`. Raises NotAServer.

    `remake` returns the same server at another address.
    """
    listed = server.get("/models")
    if not _listing(listed.table) and not server.url.endswith("/v1"):
        under = remake(f"{server.url}/v1")
        again = under.get("/models")
        if _listing(again.table) or not listed.status:
            server, listed = under, again
    models = tuple(_model(entry) for entry in _listing(listed.table))
    for look in (_ollama, _llama_cpp, _tei, _sglang, _lm_studio, _vllm):
        found = look(server, listed.table, models)
        if found is not None:
            return found
    if not models:
        raise NotAServer(listed.error)
    return Kind("OpenAI-compatible", None, server.url, models)


Models = tuple[ServedModel, ...]


def _vllm(server: Server, listed: Mapping[str, Any], models: Models) -> Kind | None:
    if not _is_owned_by(listed, "vllm"):
        return None
    version = _text(server.get("//version").table.get("version"))
    return Kind("vLLM", version, server.url, models)


def _sglang(server: Server, listed: Mapping[str, Any], models: Models) -> Kind | None:
    told = server.get("//get_model_info").table
    if not _is_owned_by(listed, "sglang") and "is_generation" not in told:
        return None
    info = server.get("//get_server_info").table
    slots = _count(info.get("max_running_requests"))
    context = _count(info.get("context_length"))
    models = models or (ServedModel(_text(told.get("model_path")) or "default"),)
    found = tuple(
        replace(model, slots=slots, context_window=model.context_window or context)
        for model in models
    )
    return Kind("SGLang", _text(info.get("version")), server.url, found)


def _llama_cpp(server: Server, listed: Mapping[str, Any], models: Models) -> Kind | None:
    props = server.get("//props").table
    generation = props.get("default_generation_settings")
    if not isinstance(generation, dict) or not models:
        return None
    # The context of one slot. `n_ctx_train` of the listing is what the model could do.
    context, slots = _count(generation.get("n_ctx")), _count(props.get("total_slots"))
    found = tuple(replace(model, context_window=context, slots=slots) for model in models)
    return Kind("llama.cpp", _text(props.get("build_info")), server.url, found)


def _tei(server: Server, _: Mapping[str, Any], __: Models) -> Kind | None:
    info = server.get("//info").table
    if "max_input_length" not in info or not _text(info.get("model_id")):
        return None
    model = ServedModel(
        str(info["model_id"]),
        _count(info["max_input_length"]),
        most_inputs=_count(info.get("max_client_batch_size")),
    )
    return Kind("TEI", _text(info.get("version")), server.url, (model,))


def _ollama(server: Server, _: Mapping[str, Any], __: Models) -> Kind | None:
    tags = server.get("//api/tags").table.get("models")
    if not isinstance(tags, list):
        return None
    version = _text(server.get("//api/version").table.get("version"))
    found = []
    for tag in tags:
        if isinstance(tag, dict) and _text(tag.get("name")):
            details = tag.get("details")
            size = details.get("parameter_size") if isinstance(details, dict) else None
            found.append(ServedModel(str(tag["name"]), parameters=_text(size)))
    base_url = server.url if server.url.endswith("/v1") else f"{server.url}/v1"
    return Kind("Ollama", version, base_url, tuple(found))


def _lm_studio(server: Server, _: Mapping[str, Any], models: Models) -> Kind | None:
    told = _listing(server.get("//api/v0/models").table)
    if not told or "compatibility_type" not in told[0]:
        return None
    by_id = {entry["id"]: entry for entry in told}
    found = []
    for model in models:
        entry = by_id.get(model.id, {})
        loaded, most = (
            _count(entry.get(name)) for name in ("loaded_context_length", "max_context_length")
        )
        note = "" if loaded else "the longest context that the model could have; it is not loaded"
        publisher = _text(entry.get("publisher"))
        found.append(replace(model, context_window=loaded or most, owned_by=publisher, note=note))
    return Kind("LM Studio", None, server.url, tuple(found))


def ollama_context(server: Server, model: ServedModel) -> ServedModel:
    """The model with the context that Ollama has loaded it with; call it after a request."""
    for entry in server.get("//api/ps").table.get("models") or ():
        if isinstance(entry, dict) and entry.get("name") == model.id:
            context = _count(entry.get("context_length"))
            if context:
                return replace(model, context_window=context)
    shown = server.post("//api/show", {"model": model.id}).table
    parameters = _text(shown.get("parameters")) or ""
    chosen = re.search(r"^num_ctx\s+(\d+)", parameters, re.MULTILINE)
    if chosen:
        return replace(model, context_window=int(chosen[1]))
    info = shown.get("model_info")
    most = max(
        (
            _count(value) or 0
            for name, value in (info if isinstance(info, dict) else {}).items()
            if name.endswith(".context_length")
        ),
        default=0,
    )
    note = "what the model could have; Ollama may load it with less (OLLAMA_CONTEXT_LENGTH)"
    return replace(model, context_window=most or None, note=note)


def _listing(listed: Mapping[str, Any]) -> list[dict[str, Any]]:
    data = listed.get("data")
    entries = data if isinstance(data, list) else []
    return [entry for entry in entries if isinstance(entry, dict) and _text(entry.get("id"))]


def _model(entry: Mapping[str, Any]) -> ServedModel:
    meta = entry.get("meta")
    count = _count(meta.get("n_params")) if isinstance(meta, dict) else None
    context = next(
        filter(None, (_count(entry.get(name)) for name in ("max_model_len", "context_length"))),
        None,
    )
    return ServedModel(entry["id"], context, _size(count), _text(entry.get("owned_by")))


def _is_owned_by(listed: Mapping[str, Any], name: str) -> bool:
    return any(entry.get("owned_by") == name for entry in _listing(listed))


def _size(count: int | None) -> str | None:
    """A number of parameters for people: 8030261248 is 8B."""
    for unit, size in _UNITS:
        if count and count >= size:
            return f"{count / size:.1f}".removesuffix(".0") + unit
    return None


def _count(value: object) -> int | None:
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    return value if is_whole and value > 0 else None  # type: ignore[operator, return-value]


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
