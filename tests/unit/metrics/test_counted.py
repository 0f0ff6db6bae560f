"""Names and labels of metrics: units in the name, and nothing of a user in a label."""

from prometheus_client import REGISTRY, Counter, Histogram
from prometheus_client.metrics import MetricWrapperBase

from xalen_batch.metrics import counted

DEFINED = [each for each in vars(counted).values() if isinstance(each, MetricWrapperBase)]
LABELS = {"method", "route", "status", "model", "mode", "outcome", "state", "sweep"}


def test_every_metric_is_registered_under_our_prefix_with_known_labels() -> None:
    assert len(DEFINED) > 10
    for metric in DEFINED:
        assert metric._name.startswith("xalen_")
        assert set(metric._labelnames) <= LABELS, metric._name
        assert isinstance(metric, Counter | Histogram)
        if isinstance(metric, Histogram):
            assert metric._name.endswith("_seconds")
            assert list(metric._upper_bounds) == sorted(metric._upper_bounds)
    assert REGISTRY.get_sample_value("xalen_build_info", {"version": counted.__version__}) == 1


def test_the_mode_of_a_label() -> None:
    assert (counted.mode(True), counted.mode(False)) == ("live", "test")
