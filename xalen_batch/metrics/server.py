"""The port on which a process serves its metrics."""

from prometheus_client import start_http_server

from xalen_batch import log
from xalen_batch.config import settings

logger = log.get(__name__)


def start() -> None:
    """Serve `/metrics` on a thread of its own, if a port is set.

    A port that is taken is logged and costs only the metrics: a process that can work shall work.
    """
    port, host = settings().metrics_port, settings().metrics_host
    if port is None:
        return
    try:
        start_http_server(port, host)
    except OSError as error:
        logger.error("metrics.not_served", host=host, port=port, reason=str(error))
    else:
        logger.info("metrics.served", host=host, port=port)
