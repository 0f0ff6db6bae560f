"""The list of attacks: the parts of each module, and the error for an unknown name."""

import pytest

from tests.attack import attacks
from tests.attack.__main__ import arguments
from tests.attack.system import Figure


@pytest.mark.parametrize("name", attacks.names())
def test_an_attack_says_what_it_does(name: str) -> None:
    module = attacks._module(name)
    assert attacks.purpose(name).endswith(".")
    assert callable(module.attack)
    assert {"SETTINGS", "CATALOG"} <= vars(module).keys()


def test_a_figure_holds_up_to_its_bound() -> None:
    assert Figure("seconds", 2.0, 2).holds
    assert not Figure("seconds", 2.1, 2).holds


def test_an_unknown_attack_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        arguments(["no-such-attack"])
    assert ended.value.code == 2
    assert "there is no attack no-such-attack" in capsys.readouterr().err
