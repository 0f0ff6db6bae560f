"""Every page in both colour schemes, on a phone and on a desk, and without scripts."""

import pytest

from tests.browser.conftest import Open, Seeded

LOOKS = [(scheme, width) for scheme in ("light", "dark") for width in (1280, 390)]


@pytest.mark.parametrize(("scheme", "width"), LOOKS)
def test_every_page_is_accessible_and_keeps_its_policy(
    seeded: Seeded, tab: Open, scheme: str, width: int
) -> None:
    opened = tab(scheme=scheme, width=width)
    found = {}
    for path in seeded.pages:
        opened.open(path)
        found[path] = [*opened.problems(), *opened.violations()]
    assert {path: problems for path, problems in found.items() if problems} == {}


@pytest.mark.parametrize("width", [1280, 390])
def test_every_page_works_without_scripts(seeded: Seeded, tab: Open, width: int) -> None:
    opened = tab(width=width, java_script_enabled=False)
    for path in seeded.pages:
        page = opened.open(path)
        assert page.locator("main h1").count() == 1, path
        assert page.locator("html.test").count() == 1, path


@pytest.mark.parametrize(("scheme", "width"), LOOKS)
def test_the_sign_in_is_accessible(seeded: Seeded, tab: Open, scheme: str, width: int) -> None:
    opened = tab(scheme=scheme, width=width)
    opened.page.context.clear_cookies()
    opened.open("/console/sign-in")
    assert [*opened.problems(), *opened.violations()] == []
    opened.page.get_by_label("API key").fill("xln_test_wrong")
    opened.page.get_by_role("button", name="Sign in").click()
    opened.page.get_by_role("alert").wait_for()
    assert opened.violations() == []


def test_text_of_twice_the_size_fits(seeded: Seeded, tab: Open) -> None:
    opened = tab(width=640)
    found = {}
    for path in seeded.pages:
        opened.open(path)
        found[path] = opened.problems()
    assert {path: problems for path, problems in found.items() if problems} == {}
