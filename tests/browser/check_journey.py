"""The engineer's journey: drop a file, see an error, mend it, run it, read a line, download."""

import json
from pathlib import Path

from tests.browser.conftest import Open, Seeded
from tests.factories import chat_line, jsonl


def test_from_a_faulty_file_to_its_answers(tab: Open, tmp_path: Path) -> None:
    opened = tab()
    page = opened.open("/console")
    page.get_by_role("link", name="New batch").click()

    file = tmp_path / "tickets.jsonl"
    file.write_bytes(jsonl([chat_line("one"), chat_line("one"), chat_line("two")]))
    page.locator("input[type=file]").set_input_files(file)
    page.get_by_text("duplicate_custom_id").wait_for()
    assert "used on line 1 and again on line 2" in page.inner_text("main")

    file.write_bytes(jsonl([chat_line(f"ticket-{number}") for number in range(30)]))
    page.locator("input[type=file]").set_input_files(file)
    page.locator("#file").get_by_text("30 good lines").wait_for()
    page.get_by_label("Metadata").fill("team=search")
    page.get_by_role("button", name="Create test batch").click()

    # The page follows the batch by itself.
    page.locator("[data-state=completed]").wait_for(timeout=60_000)
    page.get_by_role("link", name="Results", exact=True).wait_for()
    page.get_by_role("link", name="ticket-7", exact=True).click()
    drawer = page.locator("#drawer.open")
    drawer.get_by_text("Line 8").wait_for()
    assert "Where is my parcel?" in drawer.inner_text()
    page.keyboard.press("Escape")
    assert drawer.count() == 0

    with page.expect_download() as started:
        page.get_by_role("link", name="Results", exact=True).click()
    lines = Path(started.value.path()).read_text("utf-8").splitlines()
    assert [json.loads(line)["custom_id"] for line in lines] == [
        f"ticket-{number}" for number in range(30)
    ]
    assert opened.problems() == []


def test_up_tells_where_the_console_is_and_keeps_the_link_out_of_a_log(seeded: Seeded) -> None:
    told = (seeded.system.data_dir / "up.log").read_text("utf-8")
    assert f"The console, for a browser: {seeded.system.address}/console/sign-in\n" in told


def test_the_same_without_scripts(tab: Open, tmp_path: Path) -> None:
    opened = tab(java_script_enabled=False)
    page = opened.open("/console/batches/new")
    file = tmp_path / "tickets.jsonl"
    file.write_bytes(jsonl([chat_line("one")]))
    page.locator("input[type=file]").set_input_files(file)
    page.get_by_role("button", name="Upload and check").click()
    page.get_by_role("button", name="Create test batch").click()
    page.get_by_text("Has to end by").or_(page.get_by_text("Completed")).first.wait_for()


def test_keys_move_through_a_list(tab: Open) -> None:
    opened = tab()
    page = opened.open("/console/batches")
    page.keyboard.press("j")
    first = page.evaluate("document.activeElement.href")
    page.keyboard.press("j")
    second = page.evaluate("document.activeElement.href")
    assert "/console/batches/batch_" in first
    assert first != second
    page.keyboard.press("k")
    assert page.evaluate("document.activeElement.href") == first
    page.keyboard.press("Enter")
    page.wait_for_url(first)


def test_a_filter_replaces_the_list_and_is_in_the_address(tab: Open) -> None:
    opened = tab()
    page = opened.open("/console/batches")
    page.get_by_label("State").select_option("failed")
    page.wait_for_url("**status=failed**")
    page.locator("#list .st.bad").first.wait_for()
    assert page.locator("#list .st.ok").count() == 0
    page.reload()
    assert page.get_by_label("State").input_value() == "failed"
    assert opened.problems() == []


def test_an_id_is_copied_on_plain_http(tab: Open) -> None:
    opened = tab(permissions=["clipboard-read", "clipboard-write"])
    page = opened.open("/console/batches")
    page.locator("tbody td a").first.click()
    id = page.locator(".id").first.inner_text()
    page.get_by_role("button", name="Copy id").click()
    page.locator(".btn.done").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == id
