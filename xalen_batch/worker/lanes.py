"""The lanes of a worker process, which follow the catalog."""

import asyncio
from collections.abc import Callable, Mapping

from xalen_batch.backends import registry
from xalen_batch.backends.buffer import Buffers
from xalen_batch.catalog import Model
from xalen_batch.pipeline.claim import LaneKey
from xalen_batch.worker.lane import Lane


class Lanes:
    """A lane for each model and mode that has had work; event loop thread only.

    `items` and `values` may be called on any thread. `make` creates a lane. `stop` is called with a
    lane whose runs are to start no further line: the catalog changed its model, or removed it.
    """

    def __init__(
        self,
        make: Callable[[Model, bool], Lane],
        stop: Callable[[Lane], None],
        buffers: Buffers,
    ) -> None:
        self._make = make
        self._stop = stop
        self._buffers = buffers
        # Each lane with the entry of the catalog that it was made from.
        self._made: dict[LaneKey, tuple[Lane, Model]] = {}
        # Lanes that start no further line; they close when their last request has ended.
        self._retired: list[Lane] = []
        # Keeps the tasks that close lanes from garbage collection.
        self._closing: set[asyncio.Task[None]] = set()

    def items(self) -> list[tuple[LaneKey, Lane]]:
        return [(key, lane) for key, (lane, _) in list(self._made.items())]

    def values(self) -> list[Lane]:
        return [lane for lane, _ in list(self._made.values())]

    def find(self, key: LaneKey, model: Model) -> Lane:
        """The lane of a model as the catalog has it now. Raises what creating its backend does."""
        known = self._made.get(key)
        if known is not None and model.runs_as(known[1]):
            return known[0]
        if known is not None:
            self._retire(key)
        lane = self._make(model, key[1])
        self._made[key] = lane, model
        return lane

    def follow(self, models: Mapping[str, Model]) -> None:
        """Retire the lanes of models that have changed or are gone, and close those that are idle.

        Lines that are not in flight return to their tasks, and run in the lane that comes next.
        """
        for key, (_, made_from) in list(self._made.items()):
            model = models.get(key[0])
            if model is None or not model.runs_as(made_from):
                self._retire(key)
        for lane in [lane for lane in self._retired if not lane.unfinished]:
            self._retired.remove(lane)
            closing = asyncio.create_task(self._close(lane))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Close every lane and backend, after all runs have ended."""
        for lane in (*self._retired, *self.values()):
            await lane.close()
        for lane in self._retired:
            await lane.backend.close()
        await registry.close_all()

    def _retire(self, key: LaneKey) -> None:
        lane, _ = self._made.pop(key)
        registry.give_up(*key)
        self._retired.append(lane)
        self._stop(lane)

    async def _close(self, lane: Lane) -> None:
        await lane.close()
        await lane.backend.close()
        self._buffers.remove(lane.buffer)
