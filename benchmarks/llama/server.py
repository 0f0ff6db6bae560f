"""llama.cpp's own server on a free port, until stdin closes. Runs as a script where xllamacpp and
gguf are installed, and imports nothing of ours but the module beside it.
"""

import sys
import tempfile
from pathlib import Path

import random_model
import xllamacpp

SLOTS, CONTEXT, ANSWER_TOKENS = 4, 4096, 4


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="xalen-llama-") as folder:
        model = Path(folder) / "random.gguf"
        random_model.write(model, context=CONTEXT)
        server = xllamacpp.Server(_parameters(model))
        sys.stdout.write(f"{server.listening_address}/v1\n")
        sys.stdout.flush()
        sys.stdin.read()


def _parameters(model: Path) -> "xllamacpp.CommonParams":
    found = xllamacpp.CommonParams()
    found.model.path = str(model)
    found.hostnames, found.port = ["127.0.0.1"], 0
    found.n_parallel, found.n_ctx, found.n_predict = SLOTS, SLOTS * CONTEXT, ANSWER_TOKENS
    found.warmup = False
    # The prompts in the slots are all that is kept, as on a GPU with no memory to spare.
    found.cache_ram_mib = 0
    return found


if __name__ == "__main__":
    main()
