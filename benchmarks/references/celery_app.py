"""One Celery task per line, as it is first written: take the request, post it, keep the answer in
Redis.

With the gevent pool Celery itself patches what blocks before this module is imported.
"""

import os
from typing import Any

import redis
import requests
from celery import Celery

app = Celery("lines", broker=os.environ["LINES_BROKER"])
app.conf.update(
    task_ignore_result=True, worker_prefetch_multiplier=1, broker_connection_retry_on_startup=True
)
store = redis.Redis(unix_socket_path=os.environ["LINES_SOCKET"])
session = requests.Session()
session.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=512))


@app.task(name="lines.complete", acks_late=True)  # type: ignore[untyped-decorator]
def complete(url: str, request: dict[str, Any]) -> None:
    answer = session.post(url, json=request, timeout=60)
    answer.raise_for_status()
    store.rpush("answers", answer.content)
