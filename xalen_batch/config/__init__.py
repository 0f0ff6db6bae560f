"""All settings, read from environment variables with the prefix `XALEN_`."""

from decimal import Decimal
from functools import cache
from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from xalen_batch.config.api import Api
from xalen_batch.config.backends import Backends
from xalen_batch.config.metrics import Metrics
from xalen_batch.config.places import Places
from xalen_batch.config.quotas import Quotas
from xalen_batch.config.schedules import Schedules
from xalen_batch.config.values import GiB, MiB
from xalen_batch.config.webhooks import Webhooks
from xalen_batch.config.workers import Workers

__all__ = ["GiB", "MiB", "Settings", "settings"]


# Fields are read from the last base to the first: a validator sees those of the bases behind it.
# Each validator has a name of its own, since one of the same name in another base overrides it.
class Settings(Backends, Workers, Metrics, Webhooks, Schedules, Quotas, Api, Places, BaseSettings):
    """The settings of an operator. Durations are seconds, sizes are bytes."""

    model_config = SettingsConfigDict(
        env_prefix="XALEN_", extra="ignore", frozen=True, allow_inf_nan=False
    )

    batch_discount: Annotated[
        Decimal, Field(ge=0, le=1, description="Share taken off the list price of a batch.")
    ] = Decimal("0.5")

    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe event that is written."
    )
    log_format: Literal["console", "json"] = Field(
        "console", description="How an event is written."
    )


@cache
def settings() -> Settings:
    """The settings of this process, read from the environment once."""
    return Settings()
