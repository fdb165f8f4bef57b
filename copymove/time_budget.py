"""The time that the search in one image may take."""

import contextlib
import time
from collections.abc import Iterator


class TimeBudget:
    """The time that the search in one image may take, and the time that each of its stages took.

    This is the clock of a search, and the only object that changes while a search runs.
    """

    def __init__(self, seconds: float) -> None:
        self._begun = time.perf_counter()
        self._budget = seconds
        self.complete = True  # False as soon as a step was skipped because the time was over
        self.stages: dict[str, float] = {}  # seconds by the name of the stage

    def is_spent(self) -> bool:
        """Whether the time is over. Ask this before a step that is skipped then: `complete` remembers the answer."""
        if self.elapsed() > self._budget:
            self.complete = False
        return not self.complete

    def elapsed(self) -> float:
        """Seconds since the search began."""
        return time.perf_counter() - self._begun

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time that is spent inside the `with` block to the stage of this name."""
        begun = time.perf_counter()
        yield
        self.stages[name] = self.stages.get(name, 0.0) + time.perf_counter() - begun
