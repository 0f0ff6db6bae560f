"""Which backend a model runs on.

Used on a worker's event loop only, so that no two are made at once.
"""

from xalen_batch.backends.buffer import Buffer
from xalen_batch.backends.contract import Backend
from xalen_batch.backends.openai import OpenAIBackend
from xalen_batch.backends.rerank_chat import RerankChat
from xalen_batch.backends.simulated.backend import SimulatedBackend
from xalen_batch.catalog import Model
from xalen_batch.errors import ConfigError

_made: dict[tuple[Model, bool], Backend] = {}


def backend_for(model: Model, livemode: bool, buffer: Buffer | None = None) -> Backend:
    """The one backend of a model in a mode. `buffer` bounds its answers; a backend that is there
    already keeps its own.

    Raises ConfigError where the catalog's entry has none or cannot work.
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
        backend = _made[model, is_simulated] = RerankChat(made) if model.is_reranker else made
    return backend


async def close_all() -> None:
    """Close every backend's connections; the next request makes new ones."""
    while _made:
        _, backend = _made.popitem()
        await backend.close()
