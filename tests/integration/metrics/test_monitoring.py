"""The alerts and dashboards name metrics and labels that exist, and every alert has a case."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client import REGISTRY
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import Metric

from tests.integration import engines
from xalen_batch.api import stored_metrics
from xalen_batch.metrics import requests
from xalen_batch.worker import lane_metrics
from xalen_batch.worker.engine import Engine

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "examples" / "monitoring"
ALERTS = yaml.safe_load((FOLDER / "alerts.yaml").read_text("utf-8"))["groups"][0]["rules"]
CASES = (ROOT / "tests" / "alerts" / "alerts.test.yaml").read_text("utf-8")
DASHBOARDS = ("operations", "models", "money")
# Labels that Prometheus itself adds.
ADDED = {"instance", "job"}
engine = engines.engine
pytestmark = pytest.mark.usefixtures("database", "valkey")


def expressions() -> Iterator[tuple[str, str]]:
    """(where, expression) of every alert and every graph."""
    for alert in ALERTS:
        yield alert["alert"], alert["expr"]
    for name in DASHBOARDS:
        for panel in json.loads((FOLDER / f"{name}.json").read_text("utf-8"))["panels"]:
            for target in panel["targets"]:
                # Grafana fills its variables in.
                yield panel["title"], target["expr"].replace("$__rate_interval", "5m")


def labels_of(metric: Metric) -> set[str]:
    declared = getattr(metric, "_labelnames", ())
    return {*declared, *(name for sample in metric.samples for name in sample.labels)}


@pytest.fixture
def known(engine: Engine) -> dict[str, set[str]]:
    """The labels of every series that our processes can serve."""
    requests.of("any", True)
    found = [
        *REGISTRY.collect(),
        *stored_metrics._read(),
        *lane_metrics._Lanes(engine.lanes.items).collect(),
    ]
    labels = [(metric.name, labels_of(metric)) for metric in found]
    # A counter without a value yet has no sample that shows its labels.
    labels += [
        (metric._name, set(metric._labelnames))
        for metric in REGISTRY._collector_to_names
        if isinstance(metric, MetricWrapperBase)
    ]
    known: dict[str, set[str]] = {}
    for name, names in labels:
        for suffix in ("", "_total", "_bucket", "_count", "_sum"):
            known.setdefault(f"{name}{suffix}", set()).update(names)
        known[f"{name}_bucket"].add("le")
    return known


def selectors(expression: Any) -> Iterator[Any]:
    """The vector selectors of an expression."""
    if isinstance(expression, promql_parser.VectorSelector):
        yield expression
        return
    if isinstance(expression, promql_parser.MatrixSelector):
        yield from selectors(expression.vector_selector)
        return
    for name in ("expr", "lhs", "rhs", "param"):
        inner = getattr(expression, name, None)
        if inner is not None:
            yield from selectors(inner)
    for argument in getattr(expression, "args", ()):
        yield from selectors(argument)


def grouped(expression: str) -> set[str]:
    """The labels by which an expression groups or joins."""
    lists = re.findall(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)", expression)
    return {label.strip() for found in lists for label in found.split(",") if label.strip()}


def test_every_expression_names_metrics_and_labels_that_exist(known: dict[str, set[str]]) -> None:
    seen = 0
    for where, expression in expressions():
        found = list(selectors(promql_parser.parse(expression)))
        assert found, where
        of_all: set[str] = set()
        for selector in found:
            name = selector.name
            if name.startswith("process_"):
                continue
            assert name in known, f"{where}: there is no metric {name}"
            of_all |= known[name]
            for matcher in selector.matchers.matchers:
                assert matcher.name in known[name] | ADDED, f"{where}: {name} has no {matcher.name}"
            seen += 1
        assert grouped(expression) <= of_all | ADDED, where
    assert seen > 40


def test_the_check_sees_a_wrong_name(known: dict[str, set[str]]) -> None:
    (selector,) = selectors(promql_parser.parse('sum(rate(xalen_wrong_total{model="m"}[5m]))'))
    assert selector.name not in known
    assert "account_id" not in known["xalen_lines_recorded_total"]
    assert grouped("sum by (model, mode) (x) > on (model) y") == {"model", "mode"}


def test_every_alert_has_a_case_a_severity_and_a_remedy() -> None:
    for alert in ALERTS:
        assert re.search(rf"\b{alert['alert']}\b", CASES), alert["alert"]
        assert alert["labels"]["severity"] in ("warning", "critical")
        assert set(alert["annotations"]) == {"summary", "remedy"}


def test_the_dashboards_are_what_their_program_writes() -> None:
    program: dict[str, Any] = {"__file__": str(FOLDER / "make_dashboards.py"), "__name__": "made"}
    exec((FOLDER / "make_dashboards.py").read_text("utf-8"), program)
    assert tuple(program["DASHBOARDS"]) == DASHBOARDS
    for name in DASHBOARDS:
        assert (FOLDER / f"{name}.json").read_text("utf-8") == program["text"](name), name
