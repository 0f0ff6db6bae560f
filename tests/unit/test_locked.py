"""The installed packages equal the locked ones byte for byte, and `make audit` finds known
vulnerabilities in them.
"""

import json
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests import ROOT

LOCK: dict[str, Any] = tomllib.loads((ROOT / "uv.lock").read_text("utf-8"))
PINNED = (
    "idna==3.10 --hash=sha256:946d195a0d259cbba61165e88e65941f16e9b36ea6ddb97f00452bae8b1287d3\n"
)


def test_every_file_that_may_be_installed_has_a_hash() -> None:
    packages = [package for package in LOCK["package"] if "editable" not in package["source"]]
    assert len(packages) > 100
    for package in packages:
        assert set(package["source"]) == {"registry"}, package["name"]
        files = [*([package["sdist"]] if "sdist" in package else []), *package.get("wheels", [])]
        assert files, package["name"]
        for file in files:
            assert file["hash"].startswith("sha256:"), file
            assert len(file["hash"]) == len("sha256:") + 64
            assert file["url"].startswith("https://")


def test_the_packages_of_this_repository_are_the_only_ones_without() -> None:
    assert [package["name"] for package in LOCK["package"] if "editable" in package["source"]] == [
        "xalen",
        "xalen-batch",
    ]


def test_the_image_has_the_metadata_of_what_the_lock_names() -> None:
    folders = {package["source"].get("editable") for package in LOCK["package"]} - {None, "."}
    assert folders == {"client"}
    for folder in folders:
        # `uv sync --locked` reads it, also where the package is not installed.
        assert f"COPY {folder}/pyproject.toml {folder}/\n" in (ROOT / "Dockerfile").read_text()
        assert f"!{folder}/pyproject.toml\n" in (ROOT / ".dockerignore").read_text()


@pytest.mark.parametrize("name", ["Makefile", "Dockerfile"])
def test_nothing_is_installed_that_is_not_locked(name: str) -> None:
    installs = [
        line
        for line in (ROOT / name).read_text("utf-8").splitlines()
        if "uv sync" in line or "uv export" in line
    ]
    assert installs
    assert all("--locked" in line for line in installs), installs


@contextmanager
def service(vulnerabilities: list[dict[str, Any]]) -> Iterator[str]:
    """A service like OSV that reports these vulnerabilities for every package."""

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            content = json.dumps({"vulns": vulnerabilities} if vulnerabilities else {}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Keep quiet."""

    with HTTPServer(("127.0.0.1", 0), Answer) as listening:
        thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.server_port}/v1/query"
        finally:
            listening.shutdown()
            thread.join()


def audit(tmp_path: Path, url: str) -> subprocess.CompletedProcess[str]:
    """Run the program of `make audit` on one package, with another service."""
    requirements = tmp_path / "requirements.txt"
    requirements.write_text(PINNED)
    options = [
        "--requirement",
        str(requirements),
        "--require-hashes",
        "--disable-pip",
        "--format",
        "json",
        "--progress-spinner",
        "off",
    ]
    elsewhere = [
        "--vulnerability-service",
        "osv",
        "--osv-url",
        url,
        "--cache-dir",
        str(tmp_path / "cache"),
        "--timeout",
        "5",
    ]
    return subprocess.run(
        [sys.executable, "-m", "tests.audit", *options, *elsewhere],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_packages_that_nothing_is_known_about_pass_the_audit(tmp_path: Path) -> None:
    with service([]) as url:
        ran = audit(tmp_path, url)
    assert (ran.returncode, ran.stderr) == (0, "1 packages, none known to be vulnerable.\n")


def test_a_known_vulnerability_fails_the_audit_and_is_named(tmp_path: Path) -> None:
    package = {"name": "idna", "ecosystem": "PyPI"}
    affected = [
        {
            "package": package,
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "99.0"}]}],
            "versions": ["3.10"],
        }
    ]
    with service(
        [
            {
                "id": "PYSEC-0000-1",
                "summary": "x",
                "details": "x",
                "affected": affected,
                "aliases": [],
            }
        ]
    ) as url:
        ran = audit(tmp_path, url)
    assert (ran.returncode, ran.stdout) == (
        1,
        "idna 3.10: PYSEC-0000-1; fixed in 99.0\n",
    ), ran.stderr


def test_a_service_that_cannot_be_reached_is_an_outcome_of_its_own(tmp_path: Path) -> None:
    with service([]) as url:
        pass
    ran = audit(tmp_path, url)
    assert ran.returncode == 3
    assert "Not audited: the vulnerability service is not reachable from here." in ran.stderr
