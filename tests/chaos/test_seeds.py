"""The first seeds of the campaign, which together meet every fault that there is.

`make chaos` runs hundreds.
"""

import pytest

from tests.chaos.campaign import Campaign, advice
from tests.chaos.plan import ROUND


@pytest.mark.parametrize("seed", range(1, ROUND + 1))
def test_nothing_is_lost_or_doubled_whatever_happens(campaign: Campaign, seed: int) -> None:
    outcome = campaign.run(seed)
    assert not outcome.wrong, advice(outcome)
    assert (outcome.lost, outcome.doubled) == (0, 0)
