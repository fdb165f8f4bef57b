"""The image while a forgery is made of it: its pixels, its panels, and which region shows at each pixel."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

MIN_VISIBLE = 0.6  # share of every source and copy that must still show in the end

Box = tuple[int, int, int, int]  # x, y, width, height in pixels


@dataclass(frozen=True)
class Source:
    """A region that is copied."""

    kind: str  # one of `ContentKind`
    box: Box  # in the image
    mask: np.ndarray  # (height, width) bool, within the box


@dataclass(frozen=True)
class Content:
    """A source with its copies: one instance of the finished forgery."""

    kind: str
    source: dict[str, Any]  # record: box, size
    copies: list[dict[str, Any]]  # records, see `paste.add_copy`
    regions: list[int]  # numbers of source and copies in `Composition.owner`


@dataclass
class Composition:
    """The image while it is worked on. Sources and copies are regions, numbered from 1 as they are added."""

    pixels: np.ndarray  # (H, W, 3) uint8
    owner: np.ndarray  # (H, W) int16: number of the region that shows at a pixel, 0 where there is none
    boxes: list[Box]  # of the panels; the whole image where there are none
    smallest: int  # limits of a region's side in pixels of this image, before it is resized in the end
    largest: float
    sizes: list[int] = field(default_factory=lambda: [0])  # pixels of each region when it was added, by its number
    visible: list[int] = field(default_factory=lambda: [0])  # how many of them still show
    contents: list[Content] = field(default_factory=list)

    @property
    def composed(self) -> bool:
        """Whether this is a figure of several panels."""
        return len(self.boxes) > 1

    def covered(self, x: int, y: int, mask: np.ndarray) -> np.ndarray:
        """(N + 1,) int: visible pixels of each of the N regions under `mask` (h, w) bool with its corner at x, y."""
        counts = np.bincount(self._window(x, y, mask)[mask], minlength=len(self.sizes))
        counts[0] = 0
        return counts

    def may_cover(self, covered: np.ndarray) -> bool:
        """Whether enough of every region still shows when as many pixels of each are hidden."""
        return bool((np.array(self.visible) - covered >= MIN_VISIBLE * np.array(self.sizes)).all())

    def add_region(self, x: int, y: int, mask: np.ndarray) -> None:
        """Enter a new source or copy, on top of all others."""
        self.visible = (np.array(self.visible) - self.covered(x, y, mask)).tolist()
        self._window(x, y, mask)[mask] = len(self.sizes)
        self.sizes.append(int(mask.sum()))
        self.visible.append(self.sizes[-1])

    def remove_last_region(self) -> None:
        """Undo `add_region` of a region that covered no other."""
        self.owner[self.owner == len(self.sizes) - 1] = 0
        self.sizes.pop()
        self.visible.pop()

    def hide(self, x: int, y: int, mask: np.ndarray) -> None:
        """Let no region show under the mask any more, because something was drawn over it."""
        self.visible = (np.array(self.visible) - self.covered(x, y, mask)).tolist()
        self._window(x, y, mask)[mask] = 0

    def _window(self, x: int, y: int, mask: np.ndarray) -> np.ndarray:
        return self.owner[y : y + mask.shape[0], x : x + mask.shape[1]]
