"""The sender of one Celery task per line; it ends when it has an answer for each line."""

import time

from benchmarks.references.celery_app import complete, store
from benchmarks.references.script import Work, main


def _run(work: Work) -> int:
    store.delete("answers")
    for request in work.requests():
        complete.delay(work.url, request)
    while (kept := int(store.llen("answers"))) < len(work.bodies):
        time.sleep(0.05)
    return kept


if __name__ == "__main__":
    main(_run)
