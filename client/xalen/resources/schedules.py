"""`client.schedules`: batches that run by the clock."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict, Unpack

from openai import AsyncOpenAI, BaseModel, OpenAI
from openai.pagination import AsyncCursorPage, SyncCursorPage

from xalen._options import Overrides, options, path, split
from xalen.types.schedule import (
    AddedRequests,
    DeletedSchedule,
    NewSchedule,
    PreviewFields,
    RunState,
    Schedule,
    ScheduleChanges,
    SchedulePreview,
    ScheduleRun,
    ScheduleStatus,
    Time,
)

if TYPE_CHECKING:
    # Private: `openai` exports no name for the type of its asynchronous lists.
    from openai._base_client import AsyncPaginator

PATH = "/schedules"
ONE = "/schedules/{schedule_id}"


class Create(NewSchedule, Overrides):
    pass


class Update(ScheduleChanges, Overrides):
    pass


class Preview(PreviewFields, Overrides):
    # Number of instants, 1 to 100; 10 by default.
    count: NotRequired[int]


class Page(Overrides, total=False):
    after: str
    # Objects of a page, 1 to 100; 20 by default.
    limit: int


class Period(TypedDict):
    from_: Time
    to: Time


class Backfill(Period, Overrides):
    pass


class _Runs(BaseModel):
    data: list[ScheduleRun]


class Schedules:
    def __init__(self, client: OpenAI) -> None:
        self._client = client

    def create(self, **fields: Unpack[Create]) -> Schedule:
        """Create a schedule. Its input is checked now, as its next run would read it."""
        body, options = split(fields)
        return self._client.post(PATH, body=body, options=options, cast_to=Schedule)

    def retrieve(self, schedule_id: str, **overrides: Unpack[Overrides]) -> Schedule:
        return self._client.get(
            path(ONE, schedule_id=schedule_id), options=options(overrides), cast_to=Schedule
        )

    def update(self, schedule_id: str, **fields: Unpack[Update]) -> Schedule:
        """Replace the fields that are given; None resets one to its default."""
        body, options = split(fields)
        return self._client.patch(
            path(ONE, schedule_id=schedule_id), body=body, options=options, cast_to=Schedule
        )

    def list(
        self, *, status: ScheduleStatus | None = None, **page: Unpack[Page]
    ) -> SyncCursorPage[Schedule]:
        """Schedules, newest first. Iterating asks for further pages."""
        return self._client.get_api_list(
            PATH,
            model=Schedule,
            page=SyncCursorPage[Schedule],
            options=options(page, _query(page, status=status)),
        )

    def delete(
        self, schedule_id: str, *, discard_requests: bool = False, **overrides: Unpack[Overrides]
    ) -> DeletedSchedule:
        """Delete a schedule; its runs, batches and invoices stay.

        `discard_requests`: also if requests wait in its inbox, which are lost then.
        """
        return self._client.delete(
            path(ONE, schedule_id=schedule_id),
            options=options(overrides, _discarding(discard_requests)),
            cast_to=DeletedSchedule,
        )

    def pause(
        self, schedule_id: str, *, note: str | None = None, **overrides: Unpack[Overrides]
    ) -> Schedule:
        """Stop firing it until it is resumed. Runs that have started go on."""
        return self._client.post(
            path(f"{ONE}/pause", schedule_id=schedule_id),
            body={"note": note},
            options=options(overrides),
            cast_to=Schedule,
        )

    def resume(self, schedule_id: str, **overrides: Unpack[Overrides]) -> Schedule:
        """Fire it again, from its next instant on."""
        return self._client.post(
            path(f"{ONE}/resume", schedule_id=schedule_id),
            options=options(overrides),
            cast_to=Schedule,
        )

    def run(
        self, schedule_id: str, *, as_of: Time | None = None, **overrides: Unpack[Overrides]
    ) -> ScheduleRun:
        """Run it now. `as_of`: the moment of its placeholders, such as a night that failed."""
        return self._client.post(
            path(f"{ONE}/run", schedule_id=schedule_id),
            body={"as_of": as_of},
            options=options(overrides),
            cast_to=ScheduleRun,
        )

    # `list` is a method here.
    def backfill(self, schedule_id: str, **period: Unpack[Backfill]) -> "tuple[ScheduleRun, ...]":
        """Run the instants from `from_` until before `to` that never ran."""
        runs = self._client.post(
            path(f"{ONE}/backfill", schedule_id=schedule_id),
            body={"from": period["from_"], "to": period["to"]},
            options=options(period),
            cast_to=_Runs,
        )
        return tuple(runs.data)

    def list_runs(
        self, schedule_id: str, *, state: RunState | None = None, **page: Unpack[Page]
    ) -> SyncCursorPage[ScheduleRun]:
        """Its runs, newest first; also of a deleted schedule."""
        return self._client.get_api_list(
            path(f"{ONE}/runs", schedule_id=schedule_id),
            model=ScheduleRun,
            page=SyncCursorPage[ScheduleRun],
            options=options(page, _query(page, state=state)),
        )

    def preview(
        self, schedule_id: str, *, count: int | None = None, **overrides: Unpack[Overrides]
    ) -> SchedulePreview:
        """Its next instants, 10 by default."""
        return self._client.get(
            path(f"{ONE}/preview", schedule_id=schedule_id),
            options=options(overrides, {"count": count}),
            cast_to=SchedulePreview,
        )

    def preview_cron(self, **fields: Unpack[Preview]) -> SchedulePreview:
        """The next instants of a schedule that does not exist. Saves nothing."""
        body, options = split(fields, {"count": fields.get("count")})
        body.pop("count", None)
        return self._client.post(
            f"{PATH}/preview", body=body, options=options, cast_to=SchedulePreview
        )

    def add_requests(
        self,
        schedule_id: str,
        requests: Iterable[Mapping[str, Any]],
        **overrides: Unpack[Overrides],
    ) -> AddedRequests:
        """Add lines to its inbox, for its next run: all of them, or none."""
        return self._client.post(
            path(f"{ONE}/requests", schedule_id=schedule_id),
            body={"requests": [*requests]},
            options=options(overrides),
            cast_to=AddedRequests,
        )


class AsyncSchedules:
    def __init__(self, client: AsyncOpenAI) -> None:
        self._client = client

    async def create(self, **fields: Unpack[Create]) -> Schedule:
        """Create a schedule. Its input is checked now, as its next run would read it."""
        body, options = split(fields)
        return await self._client.post(PATH, body=body, options=options, cast_to=Schedule)

    async def retrieve(self, schedule_id: str, **overrides: Unpack[Overrides]) -> Schedule:
        return await self._client.get(
            path(ONE, schedule_id=schedule_id), options=options(overrides), cast_to=Schedule
        )

    async def update(self, schedule_id: str, **fields: Unpack[Update]) -> Schedule:
        """Replace the fields that are given; None resets one to its default."""
        body, options = split(fields)
        return await self._client.patch(
            path(ONE, schedule_id=schedule_id), body=body, options=options, cast_to=Schedule
        )

    def list(
        self, *, status: ScheduleStatus | None = None, **page: Unpack[Page]
    ) -> "AsyncPaginator[Schedule, AsyncCursorPage[Schedule]]":
        """Schedules, newest first. `async for` asks for further pages."""
        return self._client.get_api_list(
            PATH,
            model=Schedule,
            page=AsyncCursorPage[Schedule],
            options=options(page, _query(page, status=status)),
        )

    async def delete(
        self, schedule_id: str, *, discard_requests: bool = False, **overrides: Unpack[Overrides]
    ) -> DeletedSchedule:
        """Delete a schedule; its runs, batches and invoices stay.

        `discard_requests`: also if requests wait in its inbox, which are lost then.
        """
        return await self._client.delete(
            path(ONE, schedule_id=schedule_id),
            options=options(overrides, _discarding(discard_requests)),
            cast_to=DeletedSchedule,
        )

    async def pause(
        self, schedule_id: str, *, note: str | None = None, **overrides: Unpack[Overrides]
    ) -> Schedule:
        """Stop firing it until it is resumed. Runs that have started go on."""
        return await self._client.post(
            path(f"{ONE}/pause", schedule_id=schedule_id),
            body={"note": note},
            options=options(overrides),
            cast_to=Schedule,
        )

    async def resume(self, schedule_id: str, **overrides: Unpack[Overrides]) -> Schedule:
        """Fire it again, from its next instant on."""
        return await self._client.post(
            path(f"{ONE}/resume", schedule_id=schedule_id),
            options=options(overrides),
            cast_to=Schedule,
        )

    async def run(
        self, schedule_id: str, *, as_of: Time | None = None, **overrides: Unpack[Overrides]
    ) -> ScheduleRun:
        """Run it now. `as_of`: the moment of its placeholders, such as a night that failed."""
        return await self._client.post(
            path(f"{ONE}/run", schedule_id=schedule_id),
            body={"as_of": as_of},
            options=options(overrides),
            cast_to=ScheduleRun,
        )

    async def backfill(
        self, schedule_id: str, **period: Unpack[Backfill]
    ) -> "tuple[ScheduleRun, ...]":
        """Run the instants from `from_` until before `to` that never ran."""
        runs = await self._client.post(
            path(f"{ONE}/backfill", schedule_id=schedule_id),
            body={"from": period["from_"], "to": period["to"]},
            options=options(period),
            cast_to=_Runs,
        )
        return tuple(runs.data)

    def list_runs(
        self, schedule_id: str, *, state: RunState | None = None, **page: Unpack[Page]
    ) -> "AsyncPaginator[ScheduleRun, AsyncCursorPage[ScheduleRun]]":
        """Its runs, newest first; also of a deleted schedule."""
        return self._client.get_api_list(
            path(f"{ONE}/runs", schedule_id=schedule_id),
            model=ScheduleRun,
            page=AsyncCursorPage[ScheduleRun],
            options=options(page, _query(page, state=state)),
        )

    async def preview(
        self, schedule_id: str, *, count: int | None = None, **overrides: Unpack[Overrides]
    ) -> SchedulePreview:
        """Its next instants, 10 by default."""
        return await self._client.get(
            path(f"{ONE}/preview", schedule_id=schedule_id),
            options=options(overrides, {"count": count}),
            cast_to=SchedulePreview,
        )

    async def preview_cron(self, **fields: Unpack[Preview]) -> SchedulePreview:
        """The next instants of a schedule that does not exist. Saves nothing."""
        body, options = split(fields, {"count": fields.get("count")})
        body.pop("count", None)
        return await self._client.post(
            f"{PATH}/preview", body=body, options=options, cast_to=SchedulePreview
        )

    async def add_requests(
        self,
        schedule_id: str,
        requests: Iterable[Mapping[str, Any]],
        **overrides: Unpack[Overrides],
    ) -> AddedRequests:
        """Add lines to its inbox, for its next run: all of them, or none."""
        return await self._client.post(
            path(f"{ONE}/requests", schedule_id=schedule_id),
            body={"requests": [*requests]},
            options=options(overrides),
            cast_to=AddedRequests,
        )


def _query(page: Page, **filters: str | None) -> dict[str, object]:
    return {"after": page.get("after"), "limit": page.get("limit"), **filters}


def _discarding(discard_requests: bool) -> dict[str, object]:
    # A query has no booleans.
    return {"discard_requests": "true" if discard_requests else None}
