"""State of the search in one image."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from config import MatchingSettings
from copymove.copies import Copy
from copymove.image_features import ImageFeatures
from copymove.visited import VisitedTransforms


@dataclass
class SearchState:
    """State of one image's search."""

    canvas: ImageFeatures
    settings: MatchingSettings
    deadline: float
    copies: list[Copy] = field(default_factory=list)
    evidence: list[dict[str, float]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    complete: bool = True
    known: "VisitedTransforms" = field(default_factory=lambda: VisitedTransforms())

    @contextlib.contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time spent inside to `seconds`."""
        begun = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - begun

    def late(self) -> bool:
        """Whether the time budget is spent; remembered in `complete`."""
        if time.perf_counter() > self.deadline:
            self.complete = False
        return not self.complete
