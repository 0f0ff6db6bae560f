"""The models, prices and limits that a file is checked with: of a server, or of this machine."""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from xalen_batch.cli.client import ApiClient
from xalen_batch.cli.failures import ApiError

if TYPE_CHECKING:
    from xalen_batch.billing.terms import Terms
    from xalen_batch.catalog import Model
    from xalen_batch.config import Settings

LIMITS = ("max_upload_bytes", "max_batch_lines", "max_batch_inputs", "max_line_bytes")
# The codes of a key without the scope `read`, and of an older server without the route.
NOT_TOLD = (403, 404)


@dataclass(frozen=True)
class Rules:
    """`source` describes their origin for a message.

    `is_servers`: they are those of the server, which refuses the same files.
    """

    source: str
    is_servers: bool
    models: "Mapping[str, Model]"
    terms: "Terms"
    discount_rate: Decimal
    limits: "Settings"


def of_server(client: ApiClient) -> Rules | None:
    """The server's rules for this key; None if it does not show them."""
    from xalen_batch.billing.terms import Terms
    from xalen_batch.config import settings

    try:
        told = client.get("/terms")
    except ApiError as error:
        if error.status in NOT_TOLD:
            return None
        raise
    # A server of an older version has no uploads in parts.
    told = {"max_upload_bytes": told["max_file_bytes"], **told}
    models = told["models"]
    backends = {model["id"]: model["answered_by"] for model in models if model["answered_by"]}
    return Rules(
        source=(
            f"models and prices of {client.connection.base_url}, in"
            f" {'live' if told['livemode'] else 'test'} mode"
        ),
        is_servers=True,
        models={model["id"]: _model(model) for model in models},
        terms=Terms({model["id"]: model["price"] for model in models}, backends),
        discount_rate=Decimal(told["batch_discount"]),
        limits=settings().model_copy(update={name: told[name] for name in LIMITS if name in told}),
    )


def local() -> Rules:
    """The rules of this machine's catalog and settings."""
    from xalen_batch import catalog
    from xalen_batch.billing.terms import Terms
    from xalen_batch.config import settings

    models = catalog.models()
    prices = {
        model.id: {component: str(price) for component, price in model.price if price is not None}
        for model in models.values()
    }
    return Rules(
        source=catalog.source(),
        is_servers=False,
        models=models,
        terms=Terms(prices, dict.fromkeys(models, "simulated")),
        discount_rate=settings().batch_discount,
        limits=settings(),
    )


def _model(told: dict[str, Any]) -> "Model":
    """A catalog model with those fields that a server's terms have and a check needs."""
    from xalen_batch.catalog import ListPrice, Model

    return Model(
        id=told["id"],
        name=told["id"],
        owned_by="",
        category="",
        parameters="",
        price=ListPrice(),
        context_window=told["context_window"],
        endpoints=tuple(told["endpoints"]),
    )
