"""A mock model server of the benchmarks: chat completions and rankings at 13 to 28 µs of CPU a
request.

    python -m benchmarks.mock --port 9000 --latency 0.12
    python -m benchmarks.mock --latency 0.12 --sigma 1                    a heavy tail, lognormal around that median
    python -m benchmarks.mock --latency 0.1 --slots 64 --queue 64         serves 64, lets 64 wait, answers 429 to the rest
    python -m benchmarks.mock --latency 0.05 --doubles-at 32              slower the more it serves, as a batching server is
    python -m benchmarks.mock --prefix-blocks 4096 --token-latency 1e-4   a prefix cache

GET /stats tells what it did. POST /control changes options ({"latency": 0.03}), and {"reset": true}
starts the count anew.
"""

import argparse
import asyncio
import sys

import msgspec
import uvloop

from benchmarks.mock.options import Options
from benchmarks.mock.server import serve


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--port", type=int, default=0, help="0: a free one; it is printed on stdout"
    )
    for field in msgspec.structs.fields(Options):
        kind = int if field.type in (int, int | None) else float
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=kind,
            default=field.default,
            help=f"default: {field.default}",
        )
    given = vars(parser.parse_args())
    port = given.pop("port")

    def ready(chosen: int) -> None:
        sys.stdout.write(f"{chosen}\n")
        sys.stdout.flush()

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(port, Options(**given), ready))
    except KeyboardInterrupt:
        return


if __name__ == "__main__":
    main()
