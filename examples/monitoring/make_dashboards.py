"""Writes the Grafana dashboards beside it. Import the JSON files into Grafana 10 or later.

Gauges of the database are the same at every API process, so their expressions take the maximum.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
WIDTH, HEIGHT = 12, 8
SOURCE = {"type": "prometheus", "uid": "${source}"}


class Panel(NamedTuple):
    """A graph: its expressions by their legends, and Grafana's name of their unit."""

    title: str
    unit: str
    expressions: dict[str, str]
    about: str = ""


def rate(metric: str, by: str, *, match: str = "") -> str:
    return f"sum by ({by}) (rate({metric}{match}[$__rate_interval]))"


def stored(metric: str, by: str, *, match: str = "") -> str:
    return f"max by ({by}) ({metric}{match})"


def quantile(share: float, metric: str, by: str) -> str:
    return (
        f"histogram_quantile({share}, sum by (le, {by}) (rate({metric}_bucket[$__rate_interval])))"
    )


OPERATIONS = (
    Panel(
        "Lines left, by the time until their deadline",
        "short",
        {
            "{{model}} {{mode}} {{due}}": "sum by (model, mode, due) ("
            + stored("xalen_demand_lines", "model, mode, due, window")
            + ")"
        },
        "Of batches in progress. `overdue` should be empty: such batches end as expired.",
    ),
    Panel(
        "Lines recorded per second",
        "short",
        {
            "{{model}} {{mode}} {{outcome}}": rate(
                "xalen_lines_recorded_total", "model, mode, outcome"
            )
        },
    ),
    Panel(
        "Age of the oldest batch with lines that may run",
        "s",
        {"{{model}} {{mode}}": stored("xalen_demand_oldest_seconds", "model, mode")},
    ),
    Panel(
        "Work that waits in workers, by reason",
        "s",
        {
            "{{reason}} {{model}} {{mode}}": stored(
                "xalen_worker_wait_seconds", "reason, model, mode"
            )
        },
        "The longest wait: for a backend, the storage, the disk or a limit per minute.",
    ),
    Panel(
        "Time left until the deadline when a batch ended",
        "s",
        {
            "least tenth {{mode}}": quantile(0.1, "xalen_batch_deadline_margin_seconds", "mode"),
            "median {{mode}}": quantile(0.5, "xalen_batch_deadline_margin_seconds", "mode"),
        },
    ),
    Panel(
        "Duration of a batch",
        "s",
        {
            "median {{mode}}": quantile(0.5, "xalen_batch_duration_seconds", "mode"),
            "95 % {{mode}}": quantile(0.95, "xalen_batch_duration_seconds", "mode"),
            "start, 95 % {{mode}}": quantile(0.95, "xalen_batch_start_seconds", "mode"),
        },
    ),
    Panel(
        "Batches that have not ended",
        "short",
        {"{{status}} {{mode}}": stored("xalen_batches_open", "status, mode")},
    ),
    Panel(
        "Batches ended per hour",
        "short",
        {"{{status}} {{mode}}": f"3600 * {rate('xalen_batches_ended_total', 'status, mode')}"},
    ),
    Panel(
        "Workers, and what they lost",
        "short",
        {
            "workers": "max(xalen_workers)",
            "leases reclaimed per hour": "sum(increase(xalen_leases_reclaimed_total[1h]))",
            "stale writes refused per hour": "sum(increase(xalen_stale_writes_refused_total[1h]))",
        },
    ),
    Panel(
        "Schedules",
        "s",
        {
            "late now": "max(xalen_schedules_late_seconds)",
            "lag of fires, 95 %": "histogram_quantile(0.95, sum by (le)"
            " (rate(xalen_schedule_fire_lag_seconds_bucket[1h])))",
        },
    ),
    Panel(
        "Runs of schedules per hour",
        "short",
        {"{{state}}": "sum by (state) (increase(xalen_schedule_runs_total[1h]))"},
    ),
    Panel(
        "Webhooks",
        "short",
        {
            "pending": "max(xalen_webhook_deliveries_pending)",
            "{{outcome}} per second": rate("xalen_webhook_attempts_total", "outcome"),
        },
    ),
    Panel(
        "Answers of the API per second",
        "reqps",
        {"{{route}} {{status}}": rate("xalen_http_requests_total", "route, status")},
    ),
    Panel(
        "Time of the API's answers, 95 %",
        "s",
        {"{{route}}": quantile(0.95, "xalen_http_request_duration_seconds", "route")},
    ),
    Panel("Free disk", "bytes", {"{{store}}": "min by (store) (xalen_disk_free_bytes)"}),
    Panel("Stored files", "bytes", {"files": "max(xalen_stored_file_bytes)"}),
    Panel("Memory of processes", "bytes", {"{{instance}}": "process_resident_memory_bytes"}),
    Panel(
        "CPU of processes",
        "short",
        {"{{instance}}": "rate(process_cpu_seconds_total[$__rate_interval])"},
        "In cores.",
    ),
)
MODELS = (
    Panel(
        "Requests in flight, of the limit",
        "short",
        {
            "in flight {{model}} {{mode}}": "sum by (model, mode) (xalen_backend_in_flight)",
            "limit {{model}} {{mode}}": "sum by (model, mode) (xalen_backend_in_flight_limit)",
            "ceiling {{model}} {{mode}}": "sum by (model, mode) (xalen_backend_in_flight_ceiling)",
        },
        "Workers adapt the limit to what the backend can take; the ceiling is the catalog's.",
    ),
    Panel(
        "Requests per second, by how they ended",
        "reqps",
        {
            "{{model}} {{mode}} {{outcome}}": rate(
                "xalen_backend_requests_total", "model, mode, outcome"
            )
        },
    ),
    Panel(
        "Time of answers",
        "s",
        {
            "median {{model}} {{mode}}": quantile(
                0.5, "xalen_backend_answer_duration_seconds", "model, mode"
            ),
            "95 % {{model}} {{mode}}": quantile(
                0.95, "xalen_backend_answer_duration_seconds", "model, mode"
            ),
        },
    ),
    Panel(
        "Tokens per second",
        "short",
        {
            "{{model}} {{mode}} {{component}}": rate(
                "xalen_backend_tokens_total", "model, mode, component"
            )
        },
    ),
    Panel(
        "Circuit open",
        "short",
        {"{{model}} {{mode}}": "max by (model, mode) (xalen_backend_circuit_open)"},
    ),
    Panel(
        "Lines claimed and not recorded",
        "short",
        {"{{model}} {{mode}}": "sum by (model, mode) (xalen_backend_lines_claimed)"},
    ),
)
MONEY = (
    Panel(
        "US dollars charged per hour",
        "currencyUSD",
        {"{{model}} {{mode}}": f"3600 * {rate('xalen_charged_usd_total', 'model, mode')}"},
        "`test` is what live would cost. Invoices are exact, this is not.",
    ),
    Panel(
        "US dollars charged in the last 24 hours",
        "currencyUSD",
        {"{{model}} {{mode}}": "sum by (model, mode) (increase(xalen_charged_usd_total[1d]))"},
    ),
    Panel(
        "Live calls billed per second",
        "reqps",
        {"{{model}} {{mode}}": rate("xalen_live_calls_recorded_total", "model, mode")},
    ),
    Panel(
        "Lines that were not billed, share",
        "percentunit",
        {
            "{{model}} {{mode}}": "sum by (model, mode)"
            ' (rate(xalen_lines_recorded_total{outcome="failed"}[1h]))'
            " / sum by (model, mode) (rate(xalen_lines_recorded_total[1h]))"
        },
    ),
    Panel(
        "Lines and invoices that do not agree",
        "short",
        {"batches per day": "sum(increase(xalen_unsealable_batches_total[1d]))"},
        "0, always. Nothing of such a batch is deleted.",
    ),
)
DASHBOARDS = {"operations": OPERATIONS, "models": MODELS, "money": MONEY}


def dashboard(name: str, panels: Sequence[Panel]) -> dict[str, Any]:
    return {
        "uid": f"xalen-{name}",
        "title": f"xalen-batch: {name}",
        "tags": ["xalen-batch"],
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {
            "list": [
                {"name": "source", "label": "Source", "type": "datasource", "query": "prometheus"}
            ]
        },
        "panels": [_drawn(panel, place) for place, panel in enumerate(panels)],
    }


def _drawn(panel: Panel, place: int) -> dict[str, Any]:
    row, column = divmod(place, 2)
    return {
        "id": place + 1,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.about,
        "datasource": SOURCE,
        "gridPos": {"x": column * WIDTH, "y": row * HEIGHT, "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}},
        "targets": [
            {"refId": chr(ord("A") + n), "datasource": SOURCE, "expr": expr, "legendFormat": legend}
            for n, (legend, expr) in enumerate(panel.expressions.items())
        ],
    }


def text(name: str) -> str:
    return json.dumps(dashboard(name, DASHBOARDS[name]), indent=2) + "\n"


if __name__ == "__main__":
    for name in DASHBOARDS:
        (HERE / f"{name}.json").write_text(text(name), "utf-8")
