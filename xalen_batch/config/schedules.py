"""Settings of schedules."""

from pathlib import Path
from typing import Annotated
from urllib.parse import unquote, urlparse

from pydantic import BaseModel, Field, ValidationInfo, field_validator
from pydantic_settings import NoDecode

from xalen_batch.config.values import parted


class Schedules(BaseModel):
    """Bounds of schedules, and the folders that they may read."""

    schedule_min_interval: int = Field(
        300, ge=60, description="Least time between two fires of a schedule."
    )
    schedule_waiting_runs: int = Field(
        200, ge=100, description="Most runs of one schedule that wait to start."
    )
    drop_roots: Annotated[
        tuple[Path, ...],
        NoDecode,
        Field(
            description=(
                "Folders, separated by commas, below which a schedule's source may name a local"
                " folder; every account may read all that is in them. Empty: no local folders."
            )
        ),
    ] = ()

    @field_validator("drop_roots", mode="before")
    @classmethod
    def _split_roots(cls, value: object) -> object:
        return parted(value)

    @field_validator("drop_roots")
    @classmethod
    def _is_apart(cls, roots: tuple[Path, ...], others: ValidationInfo) -> tuple[Path, ...]:
        """Refuse drop roots that hold the server's own files, since all accounts may read them."""
        data: Path = others.data.get("data_dir", Path()).resolve()
        address = others.data.get("storage_url")
        stored = Path(unquote(urlparse(address).path)).resolve() if address else data / "files"
        for root in roots:
            if not root.is_absolute():
                raise ValueError(
                    "must be absolute folders, separated by commas: /srv/drops,/data/exports"
                )
            found = root.resolve()
            if (
                data.is_relative_to(found)
                or stored.is_relative_to(found)
                or found.is_relative_to(stored)
            ):
                raise ValueError(
                    f"{root} holds the server's own files, or is one of their folders; name a"
                    f" folder apart from {data} and {stored}"
                )
        return roots
