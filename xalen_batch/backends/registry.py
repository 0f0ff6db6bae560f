"""Which backend a model runs on. Used on a worker's event loop only, so that no two are made at once."""

from xalen_batch.backends.contract import Backend
from xalen_batch.backends.openai import OpenAIBackend
from xalen_batch.backends.rerank_chat import RerankChat
from xalen_batch.backends.simulated.backend import SimulatedBackend
from xalen_batch.catalog import Model

_made: dict[tuple[Model, bool], Backend] = {}


def backend_for(model: Model, livemode: bool) -> Backend:
    """The one backend of a model in a mode: simulated in test mode, as the catalog configures it in live mode.

    Raises ConfigError where the catalog's entry cannot work.
    """
    is_simulated = not livemode or model.backend.kind == "simulated"
    backend = _made.get((model, is_simulated))
    if backend is None:
        made: Backend = SimulatedBackend(model) if is_simulated else OpenAIBackend(model)
        backend = _made[model, is_simulated] = RerankChat(made) if model.is_reranker else made
    return backend


async def close_all() -> None:
    """Close every backend's connections; the next request makes new ones."""
    while _made:
        _, backend = _made.popitem()
        await backend.close()
