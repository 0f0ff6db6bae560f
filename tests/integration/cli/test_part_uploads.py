"""An upload in parts over connections that break: nothing is sent twice, nothing is lost."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from tests.fault_proxy import FaultProxy
from tests.integration.conftest import Api, new_key
from xalen_batch import db, uploads
from xalen_batch.cli import client as client_module
from xalen_batch.cli import part_uploads
from xalen_batch.cli import uploads as cli_uploads
from xalen_batch.cli.client import ApiClient
from xalen_batch.cli.connection import ApiConnection
from xalen_batch.cli.failures import INTERRUPTED, Failed
from xalen_batch.models import Upload, UploadPart

SIZE = 50_000
CONTENT = b"".join(b'{"n": %d}\n' % number for number in range(30_000))
PIECES = -(-len(CONTENT) // SIZE)


@pytest.fixture
def proxy(api: Api) -> Iterator[FaultProxy]:
    with FaultProxy(("127.0.0.1", api.port)) as proxy:
        yield proxy


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(part_uploads, "PART", SIZE)
    monkeypatch.setattr(client_module, "PAUSES", ())
    path = tmp_path / "in.jsonl"
    path.write_bytes(CONTENT)
    return path


def client(proxy: FaultProxy, key: str) -> ApiClient:
    return ApiClient(ApiConnection(f"http://127.0.0.1:{proxy.port}/v1", key))


def break_at(proxy: FaultProxy, size: int) -> Any:
    """Reset all connections after this number of bytes."""

    def moved(done: int, _: int | None) -> None:
        if done >= size:
            proxy.reset()

    return moved


def nothing(*_: object) -> None:
    pass


def counted() -> tuple[int, int]:
    """The number of uploads, and of all parts that ever arrived."""
    with db.reading() as session:
        return (
            session.scalar(select(func.count()).select_from(Upload)) or 0,
            session.scalar(select(func.coalesce(func.sum(Upload.parts), 0))) or 0,
        )


def downloaded(api: Api, file: dict[str, Any]) -> bytes:
    return api.ask("GET", f"/v1/files/{file['id']}/content").body


def test_a_second_call_goes_on_where_the_first_broke(
    api: Api, proxy: FaultProxy, path: Path
) -> None:
    with pytest.raises(Failed, match=r"150,000 of .* bytes are on the server: the same command"):
        part_uploads.send(client(proxy, api.key), path, "in.jsonl", break_at(proxy, 3 * SIZE))
    proxy.heal()
    assert counted() == (1, 3)
    file = part_uploads.send(client(proxy, api.key), path, "in.jsonl", nothing)
    assert downloaded(api, file) == CONTENT
    assert counted() == (1, PIECES)
    # The upload is over, so the next one is new.
    part_uploads.send(client(proxy, api.key), path, "in.jsonl", nothing)
    assert counted() == (2, 2 * PIECES)


def test_a_stopped_upload_says_that_the_same_command_goes_on(
    api: Api, proxy: FaultProxy, path: Path
) -> None:
    def stop(done: int, _: int | None) -> None:
        if done >= 3 * SIZE:
            raise KeyboardInterrupt

    with pytest.raises(Failed, match=r"Stopped; .* 150,000 of .* the same command") as stopped:
        part_uploads.send(client(proxy, api.key), path, "in.jsonl", stop)
    assert stopped.value.exit_code == INTERRUPTED
    part_uploads.send(client(proxy, api.key), path, "in.jsonl", nothing)
    assert counted() == (1, PIECES)


def test_a_part_whose_answer_is_lost_is_not_sent_again(
    api: Api, proxy: FaultProxy, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "PAUSES", (0.01,))
    monkeypatch.setattr(client_module.time, "sleep", lambda _: proxy.heal())

    def lose_answers(done: int, _: int | None) -> None:
        if done == 2 * SIZE:
            proxy.cut_after(0)

    file = part_uploads.send(client(proxy, api.key), path, "in.jsonl", lose_answers)
    assert downloaded(api, file) == CONTENT
    assert counted() == (1, PIECES)


def test_equal_parts_are_parts_of_their_own(api: Api, proxy: FaultProxy, path: Path) -> None:
    path.write_bytes(bytes(3 * SIZE) + b"end")
    with pytest.raises(Failed):
        part_uploads.send(client(proxy, api.key), path, "in.jsonl", break_at(proxy, 2 * SIZE))
    proxy.heal()
    file = part_uploads.send(client(proxy, api.key), path, "in.jsonl", nothing)
    assert downloaded(api, file) == bytes(3 * SIZE) + b"end"
    assert counted() == (1, 4)


def test_another_file_of_the_same_size_is_another_upload(
    api: Api, proxy: FaultProxy, path: Path
) -> None:
    with pytest.raises(Failed):
        part_uploads.send(client(proxy, api.key), path, "in.jsonl", break_at(proxy, 3 * SIZE))
    proxy.heal()
    # The same size and another beginning: it is another file.
    path.write_bytes(b"X" + CONTENT[1:])
    file = part_uploads.send(client(proxy, api.key), path, "in.jsonl", nothing)
    assert downloaded(api, file) == b"X" + CONTENT[1:]
    assert counted()[0] == 2


def test_a_file_that_has_changed_behind_its_beginning_is_sent_anew(
    api: Api, proxy: FaultProxy, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part_uploads, "BEGINNING", SIZE)
    with pytest.raises(Failed):
        part_uploads.send(client(proxy, api.key), path, "in.jsonl", break_at(proxy, 3 * SIZE))
    proxy.heal()
    changed = CONTENT[:SIZE] + b"X" + CONTENT[SIZE + 1 :]
    path.write_bytes(changed)
    file = part_uploads.send(client(proxy, api.key), path, "in.jsonl", nothing)
    assert downloaded(api, file) == changed
    # The parts of the file as it was are gone.
    assert api.ask("GET", "/v1/limits").json["pending_uploads"]["used"] == 0


def test_another_key_begins_anew(api: Api, proxy: FaultProxy, path: Path) -> None:
    with pytest.raises(Failed):
        part_uploads.send(client(proxy, api.key), path, "in.jsonl", break_at(proxy, SIZE))
    proxy.heal()
    other = Api(api.port, new_key())
    file = part_uploads.send(client(proxy, other.key), path, "in.jsonl", nothing)
    assert downloaded(other, file) == CONTENT


def test_a_completion_that_takes_long_is_asked_for_again(
    api: Api, proxy: FaultProxy, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part_uploads, "JOIN_PAUSE", 0.0)
    complete = uploads.complete
    asked = []

    def lose(*arguments: Any) -> Any:
        done = complete(*arguments)
        asked.append(done)
        if len(asked) == 1:
            proxy.break_connections()
        return done

    monkeypatch.setattr(uploads, "complete", lose)
    file = part_uploads.send(client(proxy, api.key), path, "in.jsonl", nothing)
    assert downloaded(api, file) == CONTENT
    assert len(asked) == 2
    assert len(api.ask("GET", "/v1/files").json["data"]) == 1


@pytest.mark.parametrize("content", ["", "[]", '{"a": 1}', '{"a": {"id": 5}}'])
def test_a_memory_that_cannot_be_read_is_no_obstacle(
    api: Api, proxy: FaultProxy, path: Path, tmp_path: Path, content: str
) -> None:
    memory = tmp_path / "state" / "xalen-batch" / "uploads.json"
    memory.parent.mkdir(parents=True)
    memory.write_text(content)
    part_uploads.send(client(proxy, api.key), path, "in.jsonl", nothing)
    assert json.loads(memory.read_text()) == {}


def test_a_small_file_is_one_request(
    api: Api, proxy: FaultProxy, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part_uploads, "PART", len(CONTENT))
    cli_uploads.send(client(proxy, api.key), path, "in.jsonl")
    assert counted() == (0, 0)
    monkeypatch.setattr(part_uploads, "PART", len(CONTENT) - 1)
    cli_uploads.send(client(proxy, api.key), path, "in.jsonl")
    assert counted() == (1, 2)
    with db.reading() as session:
        assert session.scalars(select(UploadPart.id)).all() == []
