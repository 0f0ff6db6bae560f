"""The files that `run` writes, and its errors before it starts."""

from pathlib import Path

import pytest
from typer import BadParameter
from typer.testing import CliRunner

from tests.factories import chat_line, jsonl
from xalen_batch.cli import download
from xalen_batch.cli.batch_options import parse_metadata
from xalen_batch.cli.failures import Failed
from xalen_batch.cli.main import app
from xalen_batch.cli.run import default_target, errors_target


@pytest.mark.parametrize(
    ("file", "target"),
    [
        ("in.jsonl", "in.results.jsonl"),
        ("d/in", "d/in.results.jsonl"),
        ("a.b.jsonl", "a.b.results.jsonl"),
        ("-", "-"),
    ],
)
def test_results_go_beside_the_input(file: str, target: str) -> None:
    assert default_target(Path(file)) == Path(target)


@pytest.mark.parametrize(
    ("target", "errors"),
    [
        ("in.results.jsonl", "in.errors.jsonl"),
        ("out.jsonl", "out.errors.jsonl"),
        ("d/out", "d/out.errors.jsonl"),
    ],
)
def test_errors_go_beside_the_results(target: str, errors: str) -> None:
    assert errors_target(Path(target)) == Path(errors)


def test_metadata_keeps_what_follows_the_first_equals_sign() -> None:
    assert parse_metadata(["a=b=c", "d="]) == {"a": "b=c", "d": ""}
    assert parse_metadata(None) == {}


@pytest.mark.parametrize("entry", ["plain", "=value", ""])
def test_metadata_without_a_key_is_a_usage_error(entry: str) -> None:
    with pytest.raises(BadParameter):
        parse_metadata([entry])


def test_a_file_gets_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    target.write_bytes(b"old")
    with pytest.raises(TypeError), download.writer(target) as out:
        out.writelines([b"half", None])  # type: ignore[list-item]
    assert target.read_bytes() == b"old"
    with download.writer(target) as out:
        out.write(b"new")
    assert target.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [target]


def test_the_input_is_never_overwritten(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(b"{}")
    link = tmp_path / "link.jsonl"
    link.symlink_to(source)
    with pytest.raises(Failed, match="is the input file"):
        download.check_target(link, source)


def test_an_input_that_holds_failed_lines_is_not_taken_for_the_errors_of_its_own_run(
    tmp_path: Path,
) -> None:
    source = tmp_path / "in.errors.jsonl"
    source.write_bytes(jsonl([chat_line("a")]))
    result = CliRunner().invoke(app, ["run", str(source), "-o", str(tmp_path / "in.jsonl")])
    assert result.exit_code == 1
    assert "in.errors.jsonl is the input file" in result.stderr


def test_a_folder_that_is_not_there_is_found_out_at_once(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        app, ["run", str(tmp_path / "in.jsonl"), "-o", str(tmp_path / "nowhere" / "out.jsonl")]
    )
    assert result.exit_code == 1
    assert "is not a folder that can be written to" in result.stderr


def test_json_and_results_do_not_share_stdout() -> None:
    assert CliRunner().invoke(app, ["run", "-", "-o", "-", "--json"]).exit_code == 2
