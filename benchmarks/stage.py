"""The stage of a scenario: the mock server, the systems, input files and references."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from benchmarks import batches, environments, lines, system
from benchmarks.environments import Unavailable
from benchmarks.lines import Input
from benchmarks.mock import process as mock_process
from benchmarks.mock.options import Options
from benchmarks.mock.process import Mock
from benchmarks.references import celery_pool
from benchmarks.references import process as references
from benchmarks.samples import Contender, Sample
from benchmarks.system import USUAL, Shape, System

LITELLM = "1.106.2"
# A system at rest still polls: no more than two are kept beside each other.
MOST_SYSTEMS = 2
# The best of the three, measured by the scenario celery-pools.
CELERY_POOL: tuple[celery_pool.Pool, int] = ("gevent", 100)
FEWEST_LINES = 40
WARM_UP_LINES = 400
# Lines, and bytes of a line: just large enough.
LARGE_FILE = 2_200, 8_000
LARGE_FILES = 4


@dataclass
class Stage:
    """scale: 1 for the sizes that count, less to try things out."""

    mock: Mock
    folder: Path
    say: Callable[[str], None]
    scale: float = 1.0
    with_peers: bool = True
    _systems: dict[Shape, tuple[ExitStack, System]] = field(default_factory=dict)
    _celery: dict[tuple[celery_pool.Pool, int], tuple[ExitStack, celery_pool.Workers]] = field(
        default_factory=dict
    )

    def scaled(self, count: int) -> int:
        """So many lines at full size."""
        return max(FEWEST_LINES, int(count * self.scale))

    def chats(self, count: int, line_bytes: int = 1000) -> Input:
        return lines.chats(self.folder, self.scaled(count), line_bytes)

    def system(self, shape: Shape = USUAL, *, has_read_large_files: bool = True) -> System:
        """The running system of this shape; the one that was not used for longest makes way for a
        new one.
        """
        if shape in self._systems:
            self._systems[shape] = self._systems.pop(shape)
        else:
            while len(self._systems) >= MOST_SYSTEMS:
                self._systems.pop(next(iter(self._systems)))[0].close()
            self.say(f"starting {shape}")
            stack = ExitStack()
            started = stack.enter_context(system.running(shape, self.mock.base_url))
            self._systems[shape] = (stack, started)
            # The first batch of a process loads code and opens connections; that is not what is
            # measured.
            batches.run(started, self.mock, lines.chats(self.folder, WARM_UP_LINES), Options())
            if has_read_large_files and self.scale == 1 and not shape.requests_per_minute:
                # Nor is the start of the processes that read large files, once in each worker:
                # several at once reach them all.
                batches.run(
                    started,
                    self.mock,
                    lines.chats(self.folder, *LARGE_FILE),
                    Options(),
                    times=LARGE_FILES,
                )
        return self._systems[shape][1]

    def ours(
        self,
        input_: Input,
        options: Options,
        shape: Shape = USUAL,
        *,
        name: str = "xalen-batch",
        rounds: int | None = None,
    ) -> Contender:
        """xalen-batch from the upload to the invoice."""

        def run() -> Sample:
            return batches.run(self.system(shape), self.mock, input_, options)

        return Contender(name, run, rounds)

    def reference(
        self,
        name: str,
        module: str,
        input_: Input,
        options: Options,
        *,
        count: int,
        in_flight: int = 256,
        processes: int = 1,
        rounds: int | None = None,
    ) -> Contender:
        """A reference in this environment, over the first `count` lines of the input."""
        run = partial(
            references.run,
            module,
            self.mock,
            input_,
            options,
            lines=self.scaled(count),
            in_flight=in_flight,
            processes=processes,
        )
        return Contender(name, run, rounds)

    def celery(
        self,
        input_: Input,
        options: Options,
        *,
        count: int,
        pool: celery_pool.Pool | None = None,
        concurrency: int = 0,
        rounds: int | None = 1,
    ) -> Contender:
        """One Celery task per line; on the best pool unless one is named."""
        chosen = CELERY_POOL if pool is None else (pool, concurrency)

        def run() -> Sample:
            self._need_peers()
            if chosen not in self._celery:
                for stack, _ in self._celery.values():
                    stack.close()
                self._celery.clear()
                stack = ExitStack()
                self._celery[chosen] = (stack, stack.enter_context(celery_pool.running(*chosen)))
                self._celery[chosen][1].run(self.mock, input_, Options(), lines=FEWEST_LINES)
            return self._celery[chosen][1].run(self.mock, input_, options, lines=self.scaled(count))

        return Contender(f"Celery, a task per line ({chosen[0]} {chosen[1]})", run, rounds)

    def litellm(
        self, input_: Input, options: Options, *, count: int, rounds: int | None = 1
    ) -> Contender:
        def run() -> Sample:
            self._need_peers()
            python = environments.python_with(
                f"litellm-{LITELLM}", f"litellm=={LITELLM}", say=self.say
            )
            return references.run(
                "litellm_router",
                self.mock,
                input_,
                options,
                lines=self.scaled(count),
                in_flight=256,
                python=str(python),
                env={"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"},
            )

        return Contender(f"LiteLLM {LITELLM} Router × 256", run, rounds)

    def litellm_proxy(self) -> Path:
        """The interpreter of an environment with LiteLLM's proxy. Raises Unavailable."""
        if not self.with_peers:
            raise Unavailable("left out by --no-peers")
        return environments.python_with(
            f"litellm-proxy-{LITELLM}", f"litellm[proxy]=={LITELLM}", say=self.say
        )

    def _need_peers(self) -> None:
        if not self.with_peers:
            raise Unavailable("left out by --no-peers")
        try:
            import gevent  # type: ignore[import-untyped]  # noqa: F401
        except ImportError:
            raise Unavailable("not installed; `make bench` installs it") from None

    def close(self) -> None:
        for stack, _ in [*self._systems.values(), *self._celery.values()]:
            stack.close()
        self._systems.clear()
        self._celery.clear()


@contextmanager
def opened(say: Callable[[str], None], *, scale: float, with_peers: bool) -> Iterator[Stage]:
    """A stage with its mock server; what was started on it is stopped at the end."""
    with (
        tempfile.TemporaryDirectory(prefix="xalen-bench-inputs-") as folder,
        mock_process.running() as server,
    ):
        stage = Stage(server, Path(folder), say, scale, with_peers)
        try:
            yield stage
        finally:
            stage.close()
