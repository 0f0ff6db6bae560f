"""Settings of webhooks."""

from ipaddress import IPv4Network, IPv6Network
from typing import Annotated

from pydantic import BaseModel, Field, FilePath, field_validator
from pydantic_settings import NoDecode

from xalen_batch.config.values import parted


class Webhooks(BaseModel):
    """Where webhooks may lead, how many are sent at a time, and how long events are kept."""

    webhook_allow_http: bool = Field(
        False, description="Accept webhooks with `http://`, whose events anybody on the way reads."
    )
    webhook_allowed_networks: Annotated[
        tuple[IPv4Network | IPv6Network, ...],
        NoDecode,
        Field(
            description=(
                "Networks that are not of the internet and that webhooks may reach, separated by"
                " commas: `10.20.0.0/16,fd00:1::/64`. Every account's webhooks reach them."
            )
        ),
    ] = ()
    webhook_ca_file: FilePath | None = Field(
        None,
        description=(
            "PEM file of certificates that are trusted besides the usual ones, for receivers"
            " inside."
        ),
    )
    webhook_in_flight: int = Field(
        16,
        ge=0,
        le=256,
        description=(
            "Webhooks to which one worker process sends at a time, an account's at most a quarter"
            " of them. 0: this worker sends none."
        ),
    )
    event_retention: int = Field(
        30 * 86_400,
        ge=7 * 86_400,
        description="How long events and their deliveries are kept; at least 7 days.",
    )

    @field_validator("webhook_allowed_networks", mode="before")
    @classmethod
    def _split_networks(cls, value: object) -> object:
        return parted(value)
