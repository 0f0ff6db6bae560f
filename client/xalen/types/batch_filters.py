"""The filters of `client.batches.list`."""

from collections.abc import Mapping
from typing import Literal, TypedDict


class BatchFilters(TypedDict, total=False):
    """The conditions of a list, all of which a batch must meet."""

    status: str
    model: str
    endpoint: str
    # Unix seconds or ISO 8601; the first is included, the second is not.
    created_after: int | str
    created_before: int | str
    metadata: Mapping[str, str]
    schedule_id: str
    # `desc`, the default, begins with the newest.
    order: Literal["asc", "desc"]
