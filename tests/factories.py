"""Rows for tests, created by the product's own functions, with overridable values."""

import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import obstore
from sqlalchemy.orm import Session

from xalen_batch import ids, storage
from xalen_batch.accounts import accounts, keys
from xalen_batch.accounts.accounts import Caller, Owner
from xalen_batch.billing import prices
from xalen_batch.endpoints.names import CHAT, EMBEDDINGS, RERANK
from xalen_batch.models import Account, Batch, File, Schedule
from xalen_batch.schedules import schedules
from xalen_batch.schedules.definition import Definition

CHAT_MODEL = "mistral-small-3-1"
RERANK_MODEL = "bge-reranker-v2"
EMBEDDING_MODEL = "bge-m3"


def account(session: Session, name: str | None = None) -> Account:
    made = accounts.create(session, name or f"account-{ids.new().hex}")
    session.flush()
    return made


def key(
    session: Session, of: Account | None = None, *, livemode: bool = False, **options: Any
) -> str:
    """A new key's secret."""
    _, secret = keys.create(
        session, Owner((of or account(session)).id, livemode), name="test", **options
    )
    return secret


def caller(session: Session, of: Account | None = None, *, livemode: bool = False) -> Caller:
    return accounts.authenticate(session, key(session, of, livemode=livemode))


def jsonl(lines: Sequence[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in lines)


def input_file(
    session: Session, caller: Owner, lines: Sequence[dict[str, Any]] | bytes, **columns: Any
) -> File:
    """An uploaded file, its bytes in storage."""
    content = lines if isinstance(lines, bytes) else jsonl(lines)
    file = File(
        **{
            "id": ids.new(),
            "account_id": caller.account_id,
            "livemode": caller.livemode,
            "purpose": "batch",
            "filename": "input.jsonl",
            "size": len(content),
            "sha256": hashlib.sha256(content).digest(),
            "expires_at": datetime.now(UTC) + timedelta(days=30),
            **columns,
        }
    )
    obstore.put(storage.store(), storage.key(file.id), content)
    session.add(file)
    session.flush()
    return file


def batch(session: Session, caller: Owner, file: File, **columns: Any) -> Batch:
    """A new batch with the current prices; no hint has been sent for it."""
    made = Batch(
        **{
            "id": ids.new(),
            "account_id": caller.account_id,
            "livemode": caller.livemode,
            "endpoint": CHAT,
            "completion_window": "24h",
            "input_file_id": file.id,
            "price_snapshot": prices.snapshot(
                session, livemode=caller.livemode, models=[CHAT_MODEL, RERANK_MODEL]
            ),
            "discount_rate": Decimal("0.5"),
            "expires_at": datetime.now(UTC) + timedelta(hours=24),
            **columns,
        }
    )
    session.add(made)
    session.flush()
    session.refresh(made)
    return made


def chat_line(
    custom_id: str, content: str = "Where is my parcel?", *, model: str = CHAT_MODEL, **body: Any
) -> dict[str, Any]:
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": CHAT,
        "body": {"model": model, "messages": [{"role": "user", "content": content}], **body},
    }


def embedding_line(
    custom_id: str, input: Any = "Where is my parcel?", **body: Any
) -> dict[str, Any]:
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": EMBEDDINGS,
        "body": {"model": EMBEDDING_MODEL, "input": input, **body},
    }


def rerank_line(
    custom_id: str,
    query: str = "How do I return an item?",
    documents: Sequence[str] = ("Returns are free within 30 days.", "We ship on Mondays."),
    **body: Any,
) -> dict[str, Any]:
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": RERANK,
        "body": {"model": RERANK_MODEL, "query": query, "documents": list(documents), **body},
    }


def definition(**fields: Any) -> Definition:
    """A nightly schedule in Berlin; with `inbox={}` unless the fields name another input."""
    what = {} if {"input_file_id", "template_file_id", "source"} & set(fields) else {"inbox": {}}
    return Definition.model_validate(
        {"name": "nightly", "cron": "30 2 * * *", "timezone": "Europe/Berlin", "endpoint": CHAT}
        | what
        | fields
    )


def schedule(session: Session, owner: Owner, **fields: Any) -> Schedule:
    return schedules.create(session, owner, definition(**fields))
