"""`xalen-batch up` as a user meets it: started, stopped, killed and started again."""

import os
import signal
import socket
import stat
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from urllib.request import urlopen

import pytest
from openai import OpenAI

from tests.e2e import processes
from tests.e2e.processes import System
from tests.factories import chat_line, jsonl


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def taken_port() -> Iterator[int]:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        yield server.getsockname()[1]


@contextmanager
def taken(port: int) -> Iterator[None]:
    """Keep the port taken, by this process or by another one that has it already."""
    with ExitStack() as held:
        with suppress(OSError):
            held.enter_context(socket.create_server(("127.0.0.1", port)))
        yield


def client(system: System) -> OpenAI:
    return OpenAI(base_url=system.base_url, api_key=system.test_key)


def of_folder(folder: Path) -> dict[int, str]:
    """Processes whose command line names the folder."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:
            continue
        if str(folder) in line:
            found[int(entry.name)] = line
    return found


def listening(port: int) -> set[str]:
    """The inodes of the sockets that listen on an IPv4 port."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {row[9] for row in rows if row[1].endswith(f":{port:04X}") and row[3] == "0A"}


def second_start(
    folder: Path, *arguments: str, **settings: object
) -> subprocess.CompletedProcess[str]:
    """Run a command that ends by itself."""
    ran = processes.run(
        "up", "--data-dir", folder, *arguments, env=processes.environment(**settings)
    )
    return subprocess.CompletedProcess(
        ran.args, ran.returncode, ran.stdout.decode(), ran.stderr.decode()
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_everything_in_good_order(data_dir: Path, number: signal.Signals) -> None:
    with processes.up(data_dir, executed=True) as system:
        assert len(of_folder(data_dir)) > 4
        system.process.send_signal(number)
        assert system.process.wait(60) == 0
    assert of_folder(data_dir) == {}
    assert not (data_dir / "run.toml").exists()
    assert "database system is shut down" in (data_dir / "logs" / "postgres.log").read_text()


def test_a_second_ctrl_c_does_not_wait_for_a_worker_that_does_not_end(data_dir: Path) -> None:
    with processes.up(data_dir, shutdown_grace=300) as system:
        worker = next(pid for pid, line in of_folder(data_dir).items() if line.endswith("worker "))
        os.kill(worker, signal.SIGSTOP)
        system.process.send_signal(signal.SIGINT)
        processes.wait_until(lambda: "Stopping" in (data_dir / "up.log").read_text())
        system.process.send_signal(signal.SIGINT)
        assert system.process.wait(60) == 0
    assert of_folder(data_dir) == {}


def test_it_takes_the_next_free_port_and_says_how_to_use_it_on_stderr_and_nothing_on_stdout(
    data_dir: Path,
) -> None:
    out, err = data_dir.with_name("out"), data_dir.with_name("err")
    with taken(8080), out.open("wb") as stdout, err.open("wb") as stderr:
        process = subprocess.Popen(
            [processes.COMMAND, "up", "--data-dir", str(data_dir)],
            env=processes.environment(),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )
        try:
            processes.wait_until(
                lambda: "Ctrl-C stops" in err.read_text(), process=process, log=err
            )
        finally:
            processes.stop(process)
    credentials = tomllib.loads((data_dir / "credentials.toml").read_text())
    base_url = credentials["base_url"]
    assert base_url != "http://127.0.0.1:8080/v1"
    assert (
        f"Port 8080 is taken; using {base_url.split(':')[2].removesuffix('/v1')}."
        in err.read_text()
    )
    assert "from openai import OpenAI\n" in err.read_text()
    assert f'client = OpenAI(base_url="{base_url}", api_key="xln_test_…")\n' in err.read_text()
    assert str(data_dir / "credentials.toml") in err.read_text()
    # stderr is no terminal, and may be kept as a log, so it has no keys.
    assert not [key for key in ("test_key", "live_key") if credentials[key] in err.read_text()]
    assert f"export XALEN_DATA_DIR={data_dir}\n" in err.read_text()
    assert out.read_text() == ""


def test_folder_and_secrets_are_its_users_alone(running_system: System) -> None:
    secrets = [
        running_system.data_dir / name
        for name in ("credentials.toml", "run.toml", "postgres/password")
    ]
    assert {stat.S_IMODE(path.stat().st_mode) for path in secrets} == {0o600}
    folders = [path for path in running_system.data_dir.iterdir() if path.is_dir()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in folders} == {0o700}


def test_a_killed_start_leaves_no_process_and_the_next_has_the_data_and_finishes_the_work(
    data_dir: Path,
) -> None:
    with processes.up(data_dir, executed=True, lease=5) as system:
        with client(system) as api:
            lines = jsonl([chat_line(f"line-{n}") for n in range(300)])
            file = api.files.create(file=("tickets.jsonl", lines), purpose="batch")
            batch = api.batches.create(
                input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
            )
        os.kill(system.process.pid, signal.SIGKILL)
        system.process.wait()
    processes.wait_until(lambda: of_folder(data_dir) == {})
    with (
        processes.up(data_dir, lease=5, tick_interval=1, poll_interval=0.2) as again,
        client(again) as api,
    ):
        assert again.test_key == system.test_key
        assert api.files.content(file.id).content == lines
        processes.wait_until(lambda: api.batches.retrieve(batch.id).status == "completed")
        counts = api.batches.retrieve(batch.id).request_counts
        assert counts is not None
        assert (counts.completed, counts.failed, counts.total) == (300, 0, 300)


def test_a_second_start_on_the_folder_is_refused_and_names_folder_and_process(
    running_system: System,
) -> None:
    refused = second_start(running_system.data_dir)
    assert refused.returncode == 1
    assert str(running_system.data_dir) in refused.stderr
    assert f"process {running_system.process.pid}" in refused.stderr
    assert processes.answers(f"{running_system.address}/readyz")


def test_a_crashed_part_is_started_again(data_dir: Path) -> None:
    with processes.up(data_dir, executed=True) as system:
        for name in ("worker", "valkey-server", "pginstall/bin/postgres"):
            old = {
                pid
                for pid, line in of_folder(data_dir).items()
                if name in line and " up " not in line
            }
            assert old
            for pid in old:
                os.kill(pid, signal.SIGKILL)
            processes.wait_until(
                lambda name=name, old=old: any(
                    name in line and pid not in old for pid, line in of_folder(data_dir).items()
                ),
                timeout=30,
            )
        processes.wait_until(lambda: processes.answers(f"{system.address}/readyz"))


def test_a_restarted_api_serves_on_the_same_socket_and_clients_wait_for_it(data_dir: Path) -> None:
    with processes.up(data_dir) as system:
        (api,) = (pid for pid, line in of_folder(data_dir).items() if " api --fd" in line)
        before = listening(system.port)
        os.kill(api, signal.SIGKILL)
        # Reaped: a process that still ends has its connections, which are reset.
        processes.wait_until(lambda: not Path(f"/proc/{api}").exists())
        assert listening(system.port) == before
        with urlopen(f"{system.address}/livez", timeout=processes.START_TIMEOUT) as answer:
            assert answer.status == 200
        assert listening(system.port) == before


def test_no_other_process_can_take_the_port_while_the_stores_start(data_dir: Path) -> None:
    port, log = processes.free_port(), data_dir.with_name("log")
    arguments = ("up", "--data-dir", str(data_dir), "--port", str(port))
    with processes.command(*arguments, log=log, env=processes.environment()) as process:
        processes.wait_until(lambda: "Starting PostgreSQL" in log.read_text(), process=process)
        assert not (data_dir / "logs" / "api.log").exists()
        with pytest.raises(OSError, match="in use"):
            socket.create_server(("127.0.0.1", port))
        # A client that is early waits for the API.
        with urlopen(f"http://127.0.0.1:{port}/livez", timeout=processes.START_TIMEOUT) as answer:
            assert answer.status == 200


@pytest.mark.parametrize("way", ["option", "setting"])
def test_a_port_asked_for_by_name_that_is_taken_is_a_clear_error(
    data_dir: Path, taken_port: int, way: str
) -> None:
    refused = (
        second_start(data_dir, "--port", str(taken_port))
        if way == "option"
        else second_start(data_dir, port=taken_port)
    )
    assert refused.returncode == 1
    assert f"Port {taken_port} on 127.0.0.1 is taken" in refused.stderr
    assert not data_dir.exists()


def test_a_data_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused = second_start(tmp_path / "file" / "data")
    assert refused.returncode == 1
    assert f"{tmp_path / 'file' / 'data'} cannot be used" in refused.stderr


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("storage_url", "s3://bucket/x", "not supported yet"),
        ("storage_url", "file://{}", "cannot be written"),
        ("catalog", "{}", "cannot be read"),
    ],
)
def test_settings_that_cannot_work_are_told_before_anything_starts(
    data_dir: Path, tmp_path: Path, setting: str, value: str, words: str
) -> None:
    (tmp_path / "file").write_text("not a catalog")
    refused = second_start(data_dir, **{setting: value.format(tmp_path / "file")})
    assert refused.returncode == 1
    assert f"XALEN_{setting.upper()}" in refused.stderr
    assert words in refused.stderr
    assert not (data_dir / "postgres").exists()


def test_what_does_not_get_ready_is_stopped_and_the_check_that_failed_is_named(
    data_dir: Path,
) -> None:
    # Replace the storage folder by a file after the store was marked.
    breaking = (
        "import shutil, sys\n"
        "from pathlib import Path\n"
        "from xalen_batch.storage import marks\n"
        "from xalen_batch.standalone import supervisor\n"
        "from xalen_batch.cli.main import app\n"
        "files, place = Path(sys.argv[3]) / 'files', marks.place\n"
        "marks.place = lambda: (place(), shutil.rmtree(files), files.write_text(''))\n"
        "supervisor.READY_TIMEOUT = 30\n"
        "app()\n"
    )
    refused = subprocess.run(
        [sys.executable, "-c", breaking, "up", "--data-dir", str(data_dir)],
        env=processes.environment(),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert refused.returncode == 1, refused.stderr
    assert "Not ready within 30 s: storage failed" in refused.stderr
    assert f"Its log is {data_dir / 'logs' / 'api.log'}" in refused.stderr
    assert of_folder(data_dir) == {}
    assert not (data_dir / "run.toml").exists()
