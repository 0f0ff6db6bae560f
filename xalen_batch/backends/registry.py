"""The backends of this process: one for each model and mode.

Used on the event loop thread of a worker or the API only, so two calls cannot create the same
backend.
"""

from xalen_batch.backends.buffer import Buffer
from xalen_batch.backends.contract import Backend
from xalen_batch.backends.metered import Metered
from xalen_batch.backends.openai import OpenAIBackend
from xalen_batch.backends.replicas import Replicas
from xalen_batch.backends.rerank_chat import RerankChat
from xalen_batch.backends.responses_chat import ResponsesChat
from xalen_batch.backends.simulated.backend import SimulatedBackend
from xalen_batch.catalog import Model
from xalen_batch.catalog_backend import shown
from xalen_batch.endpoints.names import RESPONSES
from xalen_batch.errors import ConfigError
from xalen_batch.metrics import requests

# By the model's id and the mode: the catalog's entry, and the backend that was created for it.
_made: dict[tuple[str, bool], tuple[Model, Backend]] = {}


def backend_for(model: Model, livemode: bool, buffer: Buffer | None = None) -> Backend:
    """Return the backend of a model in a mode; the first call creates it.

    An entry that has changed gets a new backend, and users of the old one close it. `buffer` bounds
    the answers of a new backend; an existing backend keeps its own. Raises ConfigError if the
    catalog's entry has no backend for the mode, or an unusable one.
    """
    kind = model.kind_in(livemode)
    if kind is None:
        raise ConfigError(
            f"The catalog's models.{model.id}.backend has no base_url. Set it to the server's"
            " address, as in http://host:8000/v1."
        )
    known = _made.get((model.id, livemode))
    if known is not None and model.runs_as(known[0]):
        # The next comparison is that of one object with itself.
        _made[model.id, livemode] = model, known[1]
        return known[1]
    is_simulated = kind == "simulated"
    made: Backend = SimulatedBackend(model) if is_simulated else _servers(model, buffer)
    translated = _translated(made, model, is_simulated)
    backend = Metered(translated, requests.of(model.id, livemode))
    _made[model.id, livemode] = model, backend
    return backend


def _translated(backend: Backend, model: Model, is_simulated: bool) -> Backend:
    """A backend that takes all endpoints of its model, by way of those that it has."""
    if model.is_reranker:
        return RerankChat(backend)
    has_responses = model.backend.has_responses and not is_simulated
    if RESPONSES in model.endpoints and not has_responses:
        return ResponsesChat(backend)
    return backend


def _servers(model: Model, buffer: Buffer | None) -> Backend:
    urls = model.backend.urls
    if len(urls) == 1:
        return OpenAIBackend(model, buffer)
    buffer = buffer or Buffer()
    return Replicas(model.id, {shown(url): OpenAIBackend(model, buffer, url=url) for url in urls})


def give_up(model_id: str, livemode: bool) -> None:
    """Forget a backend, which its caller closes; the next call creates another one."""
    _made.pop((model_id, livemode), None)


async def close_all() -> None:
    """Close every backend's connections; the next request makes new ones."""
    while _made:
        _, (_, backend) = _made.popitem()
        await backend.close()
