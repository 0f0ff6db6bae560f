"""Messages that a stranger who reaches Redis may put on the queue.

None of them may end a worker or have any effect.
"""

import base64
import gzip
import json
from typing import Any

QUEUE = "xalen_batch"
BATCH = "0" * 32
SECRET = "a stranger's words"


def message(
    task: Any = "batch.execute",
    args: Any = (),
    kwargs: Any = None,
    options: Any = None,
    *,
    body: Any = None,
    **envelope: Any,
) -> bytes:
    """A message of Celery's protocol 2, as it is on the queue.

    `envelope` replaces its fields; underscores stand for hyphens.
    """
    content = json.dumps([list(args), kwargs or {}, options or {}]).encode()
    fields = {
        "body": base64.b64encode(content).decode() if body is None else body,
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {
            "lang": "py",
            "task": task,
            "id": "1" * 32,
            "eta": None,
            "expires": None,
            "timelimit": [None, None],
            "retries": 0,
        },
        "properties": {
            "correlation_id": "1" * 32,
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": QUEUE},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": "2" * 32,
        },
    }
    return json.dumps(
        fields | {name.replace("_", "-"): value for name, value in envelope.items()}
    ).encode()


def headers(**changed: Any) -> dict[str, Any]:
    return {"lang": "py", "task": "batch.execute", "id": "1" * 32} | changed


def base64_of(content: bytes) -> str:
    return base64.b64encode(content).decode()


_STARMAP = [[{"task": "batch.execute", "args": [], "kwargs": {}, "options": {}}, [[], []]]]

BROKEN: dict[str, bytes] = {
    "empty": b"",
    "no text": b"\xff\xfe\x00\x80" * 10,
    "no JSON": b"{" + SECRET.encode(),
    "a number": b"42",
    "null": b"null",
    "a list": b"[[[[]]]]",
    "deep": b"[" * 4_000,
    "no field": b"{}",
    "no headers": message(headers=None),
    "headers of another type": message(headers=[SECRET]),
    "no task in the headers": message(headers={"id": "1" * 32}),
    "no properties": message(properties=None),
    "no delivery tag": message(properties={}),
    "a body that is no text": message(body=[1]),
    "a body that is no base64": message(body="%%%"),
    "a body that is no JSON": message(body=base64_of(SECRET.encode())),
    "a body that is an object": message(body=base64_of(b"{}")),
    "a body of one element": message(body=base64_of(b"[[]]")),
    "pickle": message(
        content_type="application/x-python-serialize", body=base64_of(b"cos\nsystem\n(S'true'\ntR.")
    ),
    "yaml": message(content_type="application/x-yaml"),
    "no content type": message(content_type=None),
    "compressed": message(
        body=base64_of(gzip.compress(bytes(1_000_000))),
        headers=headers(compression="application/x-gzip"),
    ),
    "an unknown task": message("xalen.unknown"),
    "a task of another type": message(["batch.execute"]),
    "celery.starmap": message("celery.starmap", _STARMAP[0]),
    "celery.map": message("celery.map", _STARMAP[0]),
    "celery.chunks": message("celery.chunks", [*_STARMAP[0], 1]),
    "celery.group": message("celery.group", [[], "1" * 32, "2" * 32, []]),
    "celery.chain": message("celery.chain"),
    "celery.chord": message("celery.chord", [[], {}]),
    "celery.chord_unlock": message("celery.chord_unlock", ["1" * 32, {}]),
    "celery.accumulate": message("celery.accumulate", [1, 2]),
    "celery.backend_cleanup": message("celery.backend_cleanup"),
    "a missing argument": message("batch.validate"),
    "too many arguments": message("batch.finalize", [BATCH, BATCH]),
    "an argument for a job without": message("system.tick", [BATCH]),
    "a keyword": message(kwargs={"hint": "1"}),
    "an argument that is no id": message("batch.finalize", [f"{BATCH}\n{SECRET}"]),
    "an argument of another type": message(
        "batch.finalize", [{"__type__": "decimal", "__value__": "1E99999"}]
    ),
    "a date that is none": message(headers=headers(expires=SECRET)),
    "long": message(headers=headers(argsrepr="x" * 1_000_000)),
}

# Celery would obey these options; the job itself is one of ours.
OPTIONS: dict[str, bytes] = {
    "callbacks": message(
        options={
            "callbacks": [{"task": "batch.execute", "args": [], "kwargs": {}, "options": {}}] * 20
        }
    ),
    "a chain": message(
        options={
            "chain": [{"task": "celery.starmap", "args": _STARMAP[0], "kwargs": {}, "options": {}}]
        }
    ),
    "a chord": message(options={"chord": {"task": "batch.execute"}}),
    "a start in a year": message(headers=headers(eta="2099-01-01T00:00:00+00:00")),
    "a start that is no date": message(headers=headers(eta=SECRET)),
    "a time limit": message(headers=headers(timelimit=[0.001, 0.001])),
    "a reply": message(headers=headers(ignore_result=False), options={}),
    "an id of many lines": message(headers=headers(id=f"1\n{SECRET}")),
}
