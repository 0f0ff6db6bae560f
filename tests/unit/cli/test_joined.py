"""Inputs of any kind as one file: several, folders, compressed ones and stdin."""

import gzip
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.factories import chat_line, jsonl
from xalen_batch.cli.failures import Failed
from xalen_batch.cli.joined import STDIN, Joined, is_same, joined
from xalen_batch.cli.main import app
from xalen_batch.cli.run import default_target

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

A, B = b'{"a": 1}\n', b'{"b": 2}'


def read(*files: Path) -> tuple[bytes, Joined]:
    with joined(files) as found:
        return found.path.read_bytes(), found


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_one_plain_file_is_read_where_it_is(tmp_path: Path) -> None:
    file = write(tmp_path / "in.jsonl", A)
    with joined([file]) as found:
        assert (found.path, found.name) == (file, "in.jsonl")


@pytest.mark.parametrize(
    ("name", "compress"),
    [
        ("in.jsonl.gz", gzip.compress),
        ("in.jsonl.zst", zstd.compress),
        # The content decides, whatever the name.
        ("in.jsonl", gzip.compress),
    ],
)
def test_a_compressed_file_is_unpacked(
    tmp_path: Path, name: str, compress: Callable[[bytes], bytes]
) -> None:
    content = A * 300_000
    # Several members or frames one behind another are one stream.
    packed = compress(content[:1_000_000]) + compress(content[1_000_000:])
    found, source = read(write(tmp_path / name, packed))
    assert found == content
    assert source.name == "in.jsonl"


@pytest.mark.parametrize("compress", [gzip.compress, zstd.compress])
def test_a_cut_file_is_named(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    file = write(tmp_path / "in.jsonl.x", compress(A * 10_000)[:-5])
    with pytest.raises(Failed, match=r"in\.jsonl\.x is damaged or cut off"):
        read(file)


def test_several_files_and_folders_are_one_in_their_order(tmp_path: Path) -> None:
    folder = tmp_path / "exports"
    folder.mkdir()
    write(folder / "2.jsonl.gz", gzip.compress(b"\xef\xbb\xbf" + B))
    write(folder / "1.jsonl", A)
    # Neither inputs of others nor what an earlier run has written.
    for other in ("notes.txt", "1.results.jsonl", "1.errors.jsonl", ".hidden.jsonl"):
        write(folder / other, b"?")
    last = write(tmp_path / "last.jsonl", A + B)
    found, source = read(folder, last)
    assert found == A + B + b"\n" + A + B
    assert source.name == "1-and-2-more.jsonl"
    errors = [{"line": number} for number in (1, 2, 3, 4, None)]
    assert source.placed(errors) == [
        {"file": "1.jsonl", "line": 1},
        {"file": "2.jsonl", "line": 1},
        {"file": "last.jsonl", "line": 1},
        {"file": "last.jsonl", "line": 2},
        {"line": None},
    ]
    assert read(folder)[1].name == "exports.jsonl"


def test_stdin_may_be_compressed_and_be_one_of_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "in.jsonl", A)
    for content in (B, gzip.compress(B), b""):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        found, source = read(file, STDIN)
        assert found == A + (B if content else b"")
        assert source.pieces[1].name == "stdin.jsonl"


def test_wrong_inputs_are_named(tmp_path: Path) -> None:
    for files, message in (
        ([STDIN, STDIN], "Give `-` once"),
        ([tmp_path], r"holds no file whose name ends in \.jsonl"),
        ([tmp_path / "none"], "none is not a file"),
    ):
        with pytest.raises(Failed, match=message):
            read(*files)


def test_no_input_is_overwritten(tmp_path: Path) -> None:
    file = write(tmp_path / "in.jsonl", A)
    assert is_same(file, [tmp_path, STDIN]) == file
    assert is_same(tmp_path / "out.jsonl", [file]) is None


@pytest.mark.parametrize("name", ["in.jsonl.gz", "in.jsonl.zst", "in.jsonl"])
def test_results_of_a_compressed_file_are_beside_it(tmp_path: Path, name: str) -> None:
    assert default_target(tmp_path / name) == tmp_path / "in.results.jsonl"


def test_results_of_a_folder_are_beside_it(tmp_path: Path) -> None:
    folder = tmp_path / "exports"
    folder.mkdir()
    assert default_target(folder) == tmp_path / "exports.results.jsonl"


def test_several_inputs_need_a_name_of_the_results(tmp_path: Path) -> None:
    files = [str(write(tmp_path / name, A)) for name in ("a.jsonl", "b.jsonl")]
    result = CliRunner().invoke(app, ["run", *files])
    assert (result.exit_code, "--output" in result.stderr) == (2, True)


def test_errors_name_the_file_of_their_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XALEN_DATA_DIR", str(tmp_path / "data"))
    good = write(tmp_path / "good.jsonl.gz", gzip.compress(jsonl([chat_line("a")])))
    bad = write(tmp_path / "bad.jsonl", jsonl([chat_line("b"), chat_line("a")]))
    files = [str(good), str(bad)]
    result = CliRunner().invoke(app, ["validate", *files])
    assert result.exit_code == 1
    assert "bad.jsonl:2: duplicate_custom_id" in result.stdout
    shown = json.loads(CliRunner().invoke(app, ["validate", *files, "--json"]).stdout)
    [error] = shown["errors"]["data"]
    assert (error["file"], error["line"]) == ("bad.jsonl", 2)
    assert "is used at good.jsonl:1 and again at bad.jsonl:2. Make" in error["message"]
