"""Every method takes the options of `openai`'s methods, and ids cannot lead elsewhere."""

import pytest

from xalen import XALEN
from xalen._options import options, path, split


def test_options_are_no_fields_of_the_body() -> None:
    body, found = split(
        {
            "name": "n",
            "extra_headers": {"a": "b"},
            "extra_query": {"limit": 2},
            "extra_body": {"c": "d"},
            "timeout": None,
        },
        {"limit": 1, "after": None},
    )
    assert body == {"name": "n"}
    assert found == {
        "headers": {"a": "b"},
        "params": {"limit": 2},
        "extra_json": {"c": "d"},
        "timeout": None,
    }
    assert options({}) == {"params": {}}


@pytest.mark.parametrize("id", ["", "a/b", "..", "a?b", "a#b", "%2e"])
def test_an_id_is_one_part_of_the_path(id: str) -> None:
    with pytest.raises(ValueError, match="schedule_id is not an id"):
        path("/schedules/{schedule_id}", schedule_id=id)
    with pytest.raises(ValueError, match="month is not an id"):
        XALEN(api_key="k", base_url="http://127.0.0.1:1").statements.retrieve(id)


def test_ids_and_months_are_ids() -> None:
    assert path("/a/{id}/b", id="sched_0192-a") == "/a/sched_0192-a/b"
    assert path("/statements/{month}", month="2026-11") == "/statements/2026-11"
