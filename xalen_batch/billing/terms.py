"""The terms of a batch: prices and backends, frozen when it is created (docs/decisions/0029)."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Refusal:
    """The reason why a batch may not name a model: an error code and a message."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Terms:
    """The prices and backends of models. A batch runs lines of the models that have both.

    `prices`: {model: {component: "USD per million tokens"}}. `backends`: {model: "openai" or
    "simulated"}.
    """

    prices: Mapping[str, Mapping[str, str]]
    backends: Mapping[str, str]

    def refusal(self, model: str) -> Refusal | None:
        """Why a batch may not name a model; None: it may."""
        if not self.prices.get(model):
            return Refusal("model_not_priced", _no_price(model))
        if model not in self.backends:
            return Refusal("model_has_no_backend", _no_backend(model))
        return None


def _no_backend(model: str) -> str:
    return (
        f"{model} has no live backend. Use a test key, whose answers are simulated, or ask the"
        f" operator, who sets base_url in [models.{model}.backend] of the file that XALEN_CATALOG"
        " names, or lets this account's live keys have the simulated answers of kind ="
        ' "simulated" there: `xalen-batch accounts simulation NAME --allow`.'
    )


def _no_price(model: str) -> str:
    return (
        f"{model} has no price in force, and nothing runs unpriced. Name another model, or ask the"
        " operator, who puts the catalog's prices in force: `xalen-batch prices sync`."
    )
