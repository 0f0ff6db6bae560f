"""The backends of this process: one for each model and mode.

Used on a worker's event loop thread only, so two calls cannot create the same backend.
"""

from xalen_batch.backends.buffer import Buffer
from xalen_batch.backends.contract import Backend
from xalen_batch.backends.openai import OpenAIBackend
from xalen_batch.backends.rerank_chat import RerankChat
from xalen_batch.backends.responses_chat import ResponsesChat
from xalen_batch.backends.simulated.backend import SimulatedBackend
from xalen_batch.catalog import Model
from xalen_batch.endpoints.names import RESPONSES
from xalen_batch.errors import ConfigError

_made: dict[tuple[Model, bool], Backend] = {}


def backend_for(model: Model, livemode: bool, buffer: Buffer | None = None) -> Backend:
    """Return the backend of a model in a mode; the first call creates it.

    `buffer` bounds the answers of a new backend; an existing backend keeps its own. Raises
    ConfigError if the catalog's entry has no backend for the mode, or an unusable one.
    """
    kind = model.kind_in(livemode)
    if kind is None:
        raise ConfigError(
            f"The catalog's models.{model.id}.backend has no base_url. Set it to the server's"
            " address, as in http://host:8000/v1."
        )
    is_simulated = kind == "simulated"
    backend = _made.get((model, is_simulated))
    if backend is None:
        made: Backend = SimulatedBackend(model) if is_simulated else OpenAIBackend(model, buffer)
        backend = _made[model, is_simulated] = _translated(made, model, is_simulated)
    return backend


def _translated(backend: Backend, model: Model, is_simulated: bool) -> Backend:
    """A backend that takes all endpoints of its model, by way of those that it has."""
    if model.is_reranker:
        return RerankChat(backend)
    has_responses = model.backend.has_responses and not is_simulated
    if RESPONSES in model.endpoints and not has_responses:
        return ResponsesChat(backend)
    return backend


async def close_all() -> None:
    """Close every backend's connections; the next request makes new ones."""
    while _made:
        _, backend = _made.popitem()
        await backend.close()
