"""A worker that sees another folder than the API claims nothing and is named; another worker does
the work.
"""

from pathlib import Path

from tests.e2e import processes
from tests.e2e.stack import Stack


def test_a_worker_with_another_data_folder_fails_no_batch(services: Stack, tmp_path: Path) -> None:
    processes.stop(services.worker)
    stray = services.start("worker", data_dir=tmp_path / "elsewhere")
    batch = services.submit()

    def is_named() -> bool:
        checks = services.ask("GET", "/readyz").body["checks"]
        return f":{stray.pid} does not see the store" in checks["workers"].get("error", "")

    processes.wait_until(is_named, timeout=60, process=stray, log=services.folder / "worker.log")
    # It has looked for work by now, and taken none.
    processes.wait_until(
        lambda: "store.elsewhere" in (services.folder / "worker.log").read_text("utf-8", "replace"),
        timeout=60,
        process=stray,
    )
    with services.direct() as session:
        row = session.execute(
            "SELECT status, fence, errors FROM batches WHERE id = %s",
            [batch.id.removeprefix("batch_")],
        ).fetchone()
    assert row == ("validating", 0, None)
    services.worker = services.start("worker")
    services.is_done(batch)
    processes.stop(stray)
    processes.wait_until(
        lambda: services.ask("GET", "/readyz").body["checks"]["workers"]["status"] == "ok",
        timeout=60,
    )
