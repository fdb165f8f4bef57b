"""Geometric evidence: pairs of regions of one picture that are copies of each other, proven on the pixels."""

import contextlib
import functools
import itertools
import math
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numba
import numpy as np
from threadpoolctl import threadpool_limits

import alignment
import candidates
import exact
import outline
from alignment import Canvas, Evidence
from candidates import Candidates
from config import InputError, MatchingSettings, read_json

CALIBRATION = Path(__file__).resolve().parent / "weights" / "evidence.json"
MIN_SIDE = 24  # smaller pictures hold nothing that could be proven
MIN_FINE = 0.25  # correlation of the fine structure that a candidate needs to be verified
MAX_SECOND = 0.75  # likeness at another offset over that at its place: what repeats by its nature has more
MAX_TEMPLATES = 4  # copies that are sought again in a picture
MAX_FURTHER = 12  # places of each that are looked at, and candidates that are verified for them
MIN_MARGINS = (0.06, 0.05)  # of the fine structure and the middle band, whatever else speaks for a copy
BESIDE = 0.7  # share of the best copy's grain and margin that another copy in the picture needs
BESIDE_SAME = 0.4  # the same for a further copy of the best one's content
BESIDE_TURNED = 0.3  # the same for a copy that was turned or resized
BESIDE_RESIDUAL = 1.2  # log of how many times as much as the best copy another one may differ from its source
# Grey levels by which an altered copy, upright or turned, may differ from its source beside bit-identical ones.
ALTERED_RESIDUAL = (1.0, 2.0)
IDENTICAL_GRAIN = math.atanh(0.99)  # of bit-identical copies, as `features` would see it
MIN_OF_CHAIN = 0.3  # share of a region that overlaps its own copy by which the two must differ: three side by side
MAX_WIDENED = 1000  # candidates that are also looked at on large discs
MIN_FILLED = 0.12  # share of a region that must be informative: less is a frame or a gutter
NEAR_EXACT_LIKENESS = math.atanh(0.98)  # of copies that differ by shading and rounding only
MIN_EXACTNESS = 0.4  # of a disc from which candidates are also looked at in the order of their exactness
MAX_PLACES = 6  # maps under which one content may be identical but for rounding
MIN_BETTER = 0.1  # by which the fine structure (Fisher's transform) must agree better within another copy's outline
REST_RESIDUAL = 2.0  # times as much as inside that a copy must differ beyond an outline to be cut to it
MIN_COMMON = (0.7, 1.25)  # share of an outline that a copy must hold to be cut to it, and how much larger it must be
MAX_TOUCHING = 0.1  # share of a drawn outline that may overlap its own copy
MIN_AREA = 80  # least number of informative pixels of a region
FEATURES = {  # of the calibration; 1: more of it can only speak for a copy, -1: against, 0: it depends on the others
    "fine": 1,
    "fine_core": 1,
    "grain": 1,
    "grain_core": 1,
    "fine_margin": 1,
    "middle_margin": 1,
    "band": 0,
    "residual": -1,
    "jump": 1,
    "support": 1,
    "votes": 1,
    "size": 1,
    "area": 1,
    "filled": 0,
    "texture": 0,
    "noise": 0,
    "local": 0,
    "around": 0,
    "second": -1,
    "usual": -1,
    "stretch": -1,
    "zoom": -1,
}


@dataclass(frozen=True)
class Region:
    """A mask kept as its bounding box, so that evidence on large pictures stays small."""

    x: int  # left edge of the box in the picture, pixels
    y: int  # top edge
    mask: np.ndarray  # (h, w) bool

    def full(self, shape: tuple[int, int]) -> np.ndarray:
        """Mask (H, W) bool of the whole picture."""
        full = np.zeros(shape, bool)
        h, w = self.mask.shape
        full[self.y : self.y + h, self.x : self.x + w] = self.mask
        return full


@dataclass(frozen=True)
class Copy:
    """One copy of a content, and the proof that it is one."""

    kind: str  # which search found it: exact, keypoints, objects or dense
    affine: np.ndarray  # (2, 3) float64: takes a source pixel (x, y, 1) to its place (x, y) in the copy
    inliers: int  # keypoints or blocks that agree with the affine map
    correlation: float  # median local zero-mean normalised correlation of the aligned pair, -1 to 1
    score: float  # calibrated probability of a true copy, 0 to 1
    source: Region
    target: Region

    @property
    def mirrored(self) -> bool:
        """Whether the map turns the content over."""
        return bool(np.linalg.det(self.affine[:, :2]) < 0)

    @property
    def scale(self) -> float:
        """Length in the copy of one pixel of the source (geometric mean of both axes)."""
        return float(math.sqrt(abs(np.linalg.det(self.affine[:, :2]))))

    @property
    def rotation(self) -> float:
        """Turn of the source's x axis in degrees, counter-clockwise as seen on the screen, -180 to 180.

        For a mirrored copy: the turn after flipping the source left to right.
        """
        x_axis = self.affine[:, 0] * (-1 if self.mirrored else 1)
        return float(math.degrees(math.atan2(-x_axis[1], x_axis[0])))


@dataclass(frozen=True)
class Instance:
    """One duplicated content: its source and all of its copies together."""

    mask: np.ndarray  # (H, W) bool
    score: float  # 0 to 1
    copies: tuple[Copy, ...]  # the evidence; empty where only the embedding proposes the instance


@dataclass(frozen=True)
class Matches:
    """What was found in one picture."""

    instances: tuple[Instance, ...]  # best first
    complete: bool  # False when the time budget ended the search
    seconds: dict[str, float] = field(default_factory=dict)  # per stage
    copies: tuple[Copy, ...] = ()  # every verified copy as it was proven, also those below the threshold; best first
    facts: tuple[dict[str, float], ...] = ()  # what the calibration looked at, for each of `copies`; empty for exact


@dataclass
class _Search:
    """State of one picture's search."""

    canvas: Canvas
    settings: MatchingSettings
    deadline: float
    copies: list[Copy] = field(default_factory=list)
    evidence: list[dict[str, float]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    complete: bool = True
    known: "_Known" = field(default_factory=lambda: _Known())

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


def find_instances(image: np.ndarray, settings: MatchingSettings, regions: Sequence[np.ndarray] = ()) -> Matches:
    """Duplicated contents of one picture, with their proof.

    Args:
        image: (H, W, 3) uint8 RGB.
        regions: masks (H, W) bool, each with two or more parts that may be copies of each other: searched more
            thoroughly, proven in the same way.
    Raises:
        ValueError: the picture or a region has another shape or type.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image must be (H, W, 3) uint8, not {image.shape} {image.dtype}")
    for region in regions:
        if region.shape != image.shape[:2] or region.dtype != bool:
            raise ValueError(f"a region must be {image.shape[:2]} bool, not {region.shape} {region.dtype}")
    way = _way(image)
    # One core each: pictures run in parallel over processes, and small matrix products lose by more threads.
    with threadpool_limits(1):
        _compile()
        found = _find(turn(image, way), settings, [turn(region, way) for region in regions])
    return _turned_back(found, way, image.shape[:2])


@functools.cache
def _compile() -> None:
    """Have numba compile what a search calls, or load it: after installation that takes longer than a search may."""
    image = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8), (0, 0), 1.0)
    image[50:90, 50:90] = image[5:45, 5:45] // 2 + 60  # found, but not as identical
    _find(image, MatchingSettings(seconds_per_image=math.inf), [])


def _find(image: np.ndarray, settings: MatchingSettings, regions: Sequence[np.ndarray]) -> Matches:
    start = time.perf_counter()
    if min(image.shape[:2]) < MIN_SIDE:
        return Matches((), True)
    search = _Search(alignment.prepare(image), settings, start + settings.seconds_per_image)
    grey = np.clip(search.canvas.grey, 0, 255).astype(np.uint8)
    if grey.min() == grey.max():
        return Matches((), True)
    if "exact" in settings.matching_kinds:
        with search.timed("exact"):
            _search_exact(search, image)
    proposers = {
        "keypoints": lambda: _keypoints(search, grey),
        "objects": lambda: _objects(search),
        "dense": lambda: _dense(search),
    }
    screened = []
    for kind, propose in proposers.items():
        if kind in settings.matching_kinds and not search.late():
            with search.timed(kind):
                screened.append(_screen(search, kind, propose()))
    for region in regions:
        if not search.late():
            with search.timed("regions"):
                screened.extend(_screen(search, kind, found) for kind, found in _inside(search, grey, region))
    with search.timed("verification"):
        _prove(search, screened, settings.max_verified * (1 + len(regions)))
        _share_outlines(search)
    copies, facts, kept = _ranked(search)
    if kept and not search.late() and settings.matching_kinds != ("exact",):
        with search.timed("further copies"):
            proven = group_copies([copies[k] for k in kept], image.shape[:2])
            again = [_screen(search, "dense", _further(search, proven))]
            again += [_leading_out(part, proven) for part in screened]
            _prove(search, again, MAX_FURTHER)
            _share_outlines(search)
        copies, facts, kept = _ranked(search)
    with search.timed("outlines"):
        drawn = [_outlined(search, copies[k]) for k in kept]
    instances = group_copies(drawn, image.shape[:2])
    search.seconds["all"] = time.perf_counter() - start
    return Matches(tuple(instances), search.complete, search.seconds, copies, facts)


def _outlined(search: _Search, copy: Copy) -> Copy:
    """A proven copy with its outline drawn anew; as it is where the network sees none or time is over."""
    if copy.kind == "exact" or search.late():
        return copy
    drawn = outline.draw(search.canvas, copy.affine, copy.source.full(search.canvas.shape))
    source = drawn and _cut(*drawn)
    target = source and warp_region(source, copy.affine, search.canvas.shape)
    # Two that lie side by side may touch, but neither grows over the other.
    if not target or _overlap(source, target) > max(
        MAX_TOUCHING * source.mask.sum(), _overlap(copy.source, copy.target)
    ):
        return copy
    return replace(copy, source=source, target=target)


def _ranked(search: _Search) -> tuple[tuple[Copy, ...], tuple[dict[str, float], ...], list[int]]:
    """Every verified copy, best first, what the calibration looked at, and which of them are kept."""
    order = sorted(range(len(search.copies)), key=lambda i: -search.copies[i].score)
    copies = tuple(search.copies[i] for i in order)
    facts = tuple(search.evidence[i] for i in order)
    threshold = score_threshold(search.settings.max_false_alarms)
    kept = [k for k, copy in enumerate(copies) if copy.score >= threshold]
    return copies, facts, beside_best(kept, copies, facts)


def beside_best(kept: Sequence[int], copies: Sequence[Copy], facts: Sequence[dict[str, float]]) -> list[int]:
    """Of these copies, best first, those that may stand beside the best one.

    After the paste a picture was processed as a whole: what shares much less of its grain than the best copy does, or
    leads less at its place, or differs much more, merely repeats (windows, roof tiles, goods on a shelf). A copy that
    was turned or resized has lost some of its grain by that, and may share less. Beside bit-identical copies
    nothing was done since: only one may that hardly differs otherwise (blended, recoloured), or one of their content
    that was turned. A copy that lies on the grid of JPEG blocks as its source does was rounded like it, and tells
    nothing of the others.
    """
    measures = [k for k in kept if not on_grid(copies[k])]
    if not measures:
        return list(kept)
    first = copies[kept[0]]  # on the grid or not, its content is proven best
    best = next((k for k in measures if _same_content(copies[k], first)), measures[0])
    exact_ones = [copies[k] for k in measures if copies[k].kind == "exact"]

    def fits(k: int) -> bool:
        copy, seen = copies[k], facts[k]
        if copy.kind == "exact" or _near_exact(seen):
            return True
        if copies[best].kind == "exact":
            known = any(_same_content(copy, other) for other in exact_ones)
            differs = math.exp(seen["residual"] + seen["noise"])
            may_differ = differs < ALTERED_RESIDUAL[not _upright(copy)] or (known and not _upright(copy))
            return seen["grain_core"] >= (BESIDE_TURNED if may_differ else BESIDE) * IDENTICAL_GRAIN
        if on_grid(copy):
            return True
        least = BESIDE_SAME if _same_content(copy, copies[best]) else BESIDE
        if not _upright(copy):
            least = BESIDE_TURNED
        shares = facts[best]
        return seen["residual"] <= shares["residual"] + BESIDE_RESIDUAL and all(
            seen[name] >= least * shares[name] for name in ("grain_core", "fine_margin")
        )

    return [k for k in kept if fits(k)]


def on_grid(copy: Copy) -> bool:
    """Whether the map takes the picture's JPEG blocks onto blocks."""
    height, width = copy.source.mask.shape
    return exact.on_grid(copy.affine, np.array([copy.source.x + width / 2, copy.source.y + height / 2]))


def _same_content(a: Copy, b: Copy) -> bool:
    """Whether two copies have a region in common."""
    return any(_shared(one, other) for one in (a.source, a.target) for other in (b.source, b.target))


def _upright(copy: Copy) -> bool:
    """Whether a copy is hardly turned, up to right angles, and hardly resized: so repeats in photographs lie."""
    return abs((copy.rotation + 45) % 90 - 45) < 12 and abs(math.log(copy.scale)) < 0.12


# Eight ways to lay a picture ------------------------------------------------------------------------------------


def turn(array: np.ndarray, way: int) -> np.ndarray:
    """Array (H, W, ...) laid another way, 0 to 7: transposed (4), then upside down (2), then left to right (1)."""
    array = array.swapaxes(0, 1) if way & 4 else array
    return np.ascontiguousarray(array[:: -1 if way & 2 else 1, :: -1 if way & 1 else 1])


def _way(image: np.ndarray) -> int:
    """The way in which a picture is searched: a mirrored or turned picture is searched the same way as itself.

    So it gives the mirrored or turned findings to the last pixel, which no search by keypoints does by itself.
    """
    edges = [max(side // 2 - 256, 0) for side in image.shape[:2]]
    middle = image[edges[0] : image.shape[0] - edges[0], edges[1] : image.shape[1] - edges[1]]
    for part in (middle, image):  # the middle is enough, unless it is symmetrical
        sums = [zlib.crc32(turn(part, way)) for way in range(8)]
        if sums.count(min(sums)) == 1:
            break
    return int(np.argmin(sums))


def _turned_back(found: Matches, way: int, shape: tuple[int, int]) -> Matches:
    """Findings in the picture (H, W) as it was given."""
    if way == 0:
        return found
    height, width = (shape[1], shape[0]) if way & 4 else shape
    there = np.eye(3)
    if way & 4:
        there = there[[1, 0, 2]]
    if way & 2:
        there = np.array([[1, 0, 0], [0, -1, height - 1], [0, 0, 1]]) @ there
    if way & 1:
        there = np.array([[-1, 0, width - 1], [0, 1, 0], [0, 0, 1]]) @ there
    back = np.linalg.inv(there)

    def mask(values: np.ndarray) -> np.ndarray:
        values = values[:: -1 if way & 2 else 1, :: -1 if way & 1 else 1]
        return np.ascontiguousarray(values.T if way & 4 else values)

    def region(old: Region) -> Region:
        h, w = old.mask.shape
        corners = np.array([[old.x, old.y, 1], [old.x + w - 1, old.y + h - 1, 1]]) @ back.T
        x, y = np.rint(corners[:, :2].min(axis=0)).astype(int)
        return Region(int(x), int(y), mask(old.mask))

    def copy(old: Copy) -> Copy:
        affine = (back @ np.vstack([old.affine, [0, 0, 1]]) @ there)[:2]
        return replace(old, affine=affine, source=region(old.source), target=region(old.target))

    instances = tuple(Instance(mask(old.mask), old.score, tuple(map(copy, old.copies))) for old in found.instances)
    return replace(found, instances=instances, copies=tuple(map(copy, found.copies)))


# The searches ---------------------------------------------------------------------------------------------------


def _search_exact(search: _Search, image: np.ndarray) -> None:
    for found in exact.find_exact(image):
        source = Region(found.x, found.y, found.mask)
        target = warp_region(source, found.affine, search.canvas.shape)
        if target is None:
            continue
        if np.any(found.affine[:, :2] != np.eye(2)) and _overlap(source, target) > 0.3 * found.mask.sum():
            continue  # symmetrical: its own mirror image
        score = 1 / (1 + math.exp(-min((found.blocks - 70) / 12, 30.0)))
        copy = Copy("exact", found.affine, found.blocks, 1.0, min(score, 0.999), source, target)
        search.copies.append(_widened(search, copy) if on_grid(copy) else copy)
        search.evidence.append({})
        search.known.add_copy(search.copies[-1])


def _widened(search: _Search, copy: Copy) -> Copy:
    """A copy whose JPEG blocks are identical, with the rest of its blocks, which hold other things too and differ."""
    x, y, radius = inmost(copy.source)
    centre = np.array([x, y], float)
    grown = alignment.grow(search.canvas, copy.affine, centre, min(max(radius, 8.0), 20.0), MIN_FINE)
    evidence = grown and alignment.measure(search.canvas, grown)
    if evidence is None:
        return copy
    shape = search.canvas.shape
    mask = Region(evidence.x, evidence.y, evidence.mask).full(shape)
    core = copy.source.full(shape)
    if (mask & core).sum() < 0.5 * core.sum():
        return copy
    source = _cut(mask | core, 0, 0)
    target = warp_region(source, copy.affine, shape)
    return copy if target is None or _overlap(source, target) else replace(copy, source=source, target=target)


def inmost(region: Region) -> tuple[int, int, float]:
    """Pixel (x, y) of a region that lies deepest inside, and its distance from the edge in pixels."""
    depth = cv2.distanceTransform(np.pad(region.mask, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
    y, x = np.unravel_index(int(depth.argmax()), depth.shape)
    return region.x + int(x), region.y + int(y), float(depth[y, x])


def _further(search: _Search, instances: Sequence[Instance]) -> Candidates:
    """Other places of what was found: what lies inside a copy, sought everywhere as it stands."""
    band = search.canvas.band
    height, width = band.shape
    templates = []
    for instance in instances:
        best = instance.copies[0]
        turned = [c.target for c in instance.copies if np.abs(c.affine[:, :2] - np.eye(2)).max() > 0.05]
        templates += [best.source, *turned[:2]]
    found = []
    for x, y, depth in map(inmost, templates[:MAX_TEMPLATES]):
        half = int(min(max(depth, 6), 32, x, y, width - 1 - x, height - 1 - y))
        if half < 5:
            continue
        template = band[y - half : y + half + 1, x - half : x + half + 1]
        if template.std() < 0.5:
            continue
        likeness = cv2.matchTemplate(band, np.ascontiguousarray(template), cv2.TM_CCOEFF_NORMED)
        peaks = (likeness >= cv2.dilate(likeness, np.ones((9, 9), np.uint8))) & (likeness > 0.4)
        ys, xs = np.nonzero(peaks)
        best = np.argsort(-likeness[ys, xs], kind="stable")[: MAX_FURTHER + 1]
        shifts = np.stack([xs[best] + half - x, ys[best] + half - y], axis=1).astype(float)
        shifts = shifts[np.hypot(*shifts.T) > 6]
        affines = np.tile(np.eye(2, 3), (len(shifts), 1, 1))
        affines[:, :, 2] = shifts
        centres, radii = np.tile([[float(x), float(y)]], (len(shifts), 1)), np.full(len(shifts), float(half))
        found.append(Candidates(affines, centres, radii, np.ones(len(shifts), np.int64), np.zeros(len(shifts))))
    return candidates.concatenate(found)


def _keypoints(search: _Search, grey: np.ndarray) -> Candidates:
    limit = min(search.settings.max_keypoints, max(2000, grey.size // 60))
    groups, singles = candidates.keypoint_candidates(grey, limit, search.settings.match_ratio)
    order = np.argsort(-singles.likeness, kind="stable")[:4000]
    return candidates.concatenate([groups, singles.take(order)])


def _objects(search: _Search) -> Candidates:
    points, radii = candidates.object_points(search.canvas.grey, 6000)
    return candidates.polar_candidates(search.canvas.band, points, radii, 3, 0.8)


def _dense(search: _Search) -> Candidates:
    points, radii = candidates.blob_points(search.canvas.grey, (1.1, 1.6, 2.3, 3.3), 3000)
    # Around the smallest ones also as little as a small copy holds, which must be the more alike.
    small = radii < 7
    return candidates.concatenate(
        [
            candidates.polar_candidates(search.canvas.band, points, radii, 2, 0.88),
            candidates.polar_candidates(search.canvas.narrow, points[small], radii[small] * (2 / 3), 2, 0.97),
        ]
    )


def _inside(search: _Search, grey: np.ndarray, region: np.ndarray) -> list[tuple[str, Candidates]]:
    """A region proposed by the embedding: more keypoints and weaker matches, the same proof."""
    near = cv2.dilate(region.astype(np.uint8), np.ones((15, 15), np.uint8)) > 0
    groups, singles = candidates.keypoint_candidates(grey, 4000, 0.95, mask=near)
    points, radii = candidates.blob_points(search.canvas.grey, (1.6, 2.3, 3.3, 4.6), 12000)
    inside = near[points[:, 1].astype(int), points[:, 0].astype(int)]
    dense = candidates.polar_candidates(search.canvas.band, points[inside], radii[inside], 4, 0.7)
    return [("keypoints", candidates.concatenate([groups, singles])), ("dense", dense)]


# The one verification -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Screened:
    """Candidates of one search, aligned on their discs, that are worth a closer look."""

    kind: str
    affines: np.ndarray  # (n, 2, 3)
    centres: np.ndarray  # (n, 2)
    radii: np.ndarray  # (n,)
    partners: np.ndarray  # (n, 2): where the maps take the centres
    votes: np.ndarray  # (n,) int64
    rank: np.ndarray  # (n,): higher is better
    exactness: np.ndarray  # (n,): of the discs, as `Evidence.exactness`
    usual: float  # fine correlation that this search's candidates have in this picture


def _screen(search: _Search, kind: str, proposed: Candidates) -> _Screened:
    affines, centres, radii, values = alignment.screen(
        search.canvas, proposed.affines, proposed.centres, proposed.radii
    )
    near_exact = values[:, 2] > alignment.NEAR_EXACT
    rank = values[:, 1] + 0.3 * values[:, 0] + 0.02 * np.minimum(proposed.votes, 20)
    screened = values[:, 1][values[:, 1] > -1]
    usual = float(np.median(screened)) if len(screened) else 0.0
    good = np.flatnonzero((values[:, 0] > 0.6) & ((values[:, 1] > MIN_FINE) | near_exact))
    partners = np.einsum("nij,nj->ni", affines[good, :, :2], centres[good]) + affines[good, :, 2]
    chosen = (numbers[good] for numbers in (proposed.votes, rank, values[:, 2]))
    return _Screened(kind, affines[good], centres[good], radii[good], partners, *chosen, usual)


def _leading_out(screened: _Screened, instances: Sequence[Instance]) -> _Screened:
    """Those of them that lead from what is proven to somewhere else, or back."""
    proven = np.logical_or.reduce([instance.mask for instance in instances])
    chosen = _within(proven, screened.centres) != _within(proven, screened.partners)
    return replace(screened, **{k: v[chosen] for k, v in vars(screened).items() if isinstance(v, np.ndarray)})


def _prove(search: _Search, screened: Sequence[_Screened], most: int) -> None:
    """Verify the best candidates of all searches over their regions, each map once, and keep what holds."""
    order = sorted(
        ((part.rank[i], p, i) for p, part in enumerate(screened) for i in range(len(part.rank))),
        key=lambda entry: (-entry[0], entry[1:]),
    )
    order = _by_turns(search.canvas, screened, order)
    known, left = search.known, most
    for _, p, i in order:
        if not left or search.late():
            break
        part = screened[p]
        affine, centre = part.affines[i], part.centres[i]
        if (affine, centre) in known:
            continue
        left -= 1
        known.add_candidate(affine, centre)
        known.add_candidate(alignment.invert(affine), part.partners[i])
        grown = alignment.grow(search.canvas, affine, centre, float(part.radii[i]), MIN_FINE)
        if grown is None:
            continue
        # It may be a poor map that is not kept: only what agrees with it well is passed over.
        known.add_region(grown.affine, *grown.box[:2], grown.region, 1.5)
        evidence = alignment.measure(search.canvas, grown, MIN_MARGINS[0])
        if evidence and _holds(evidence) and not _repeats(evidence, screened):
            support = _support(evidence, part.centres, part.partners)
            facts = features(evidence, int(part.votes[i]), support, part.usual, search.canvas.noise)
            likeness = max(facts["fine_core"], NEAR_EXACT_LIKENESS if _near_exact(facts) else 0.0)
            if facts["second"] <= MAX_SECOND * likeness and _keep(search, part.kind, evidence, facts):
                known.add_copy(search.copies[-1])


def _holds(evidence: Evidence) -> bool:
    """Whether there is enough to judge a region by, and it leads at its place."""
    if evidence.exactness > alignment.NEAR_EXACT:
        return bool(evidence.mask.sum() >= MIN_AREA)
    margins = (evidence.fine_margin, evidence.middle_margin)
    return (
        evidence.fine > MIN_FINE
        and evidence.informative >= MIN_AREA
        and evidence.informative > MIN_FILLED * evidence.mask.sum()
        and all(margin >= least for margin, least in zip(margins, MIN_MARGINS, strict=True))
    )


def _repeats(evidence: Evidence, screened: Sequence[_Screened]) -> bool:
    """Whether what is identical but for rounding lies at too many places to be copies: a pattern or a drawing."""
    if evidence.exactness < alignment.NEAR_EXACT:
        return False
    maps = []
    for part in screened:
        same = _within(evidence.mask, part.centres, evidence.x, evidence.y) & (part.exactness > alignment.NEAR_EXACT)
        maps.append(alignment.whole_map(part.affines[same], part.centres[same]))
    return len(np.unique(np.concatenate(maps), axis=0)) > MAX_PLACES


def _within(mask: np.ndarray, points: np.ndarray, left: int = 0, top: int = 0) -> np.ndarray:
    """Which points (n, 2) of the picture lie in a mask (h, w) whose left upper pixel is (left, top)."""
    h, w = mask.shape
    x, y = np.rint(points - (left, top)).astype(int).T
    inside = (x >= 0) & (y >= 0) & (x < w) & (y < h)
    inside[inside] = mask[y[inside], x[inside]]
    return inside


def _near_exact(facts: dict[str, float]) -> bool:
    return facts.get("exactness", 0.0) > alignment.NEAR_EXACT


def _by_turns(
    canvas: Canvas, screened: Sequence[_Screened], order: list[tuple[float, int, int]]
) -> list[tuple[float, int, int]]:
    """The order, and in turn with it that of the likeness on the largest discs, and that of the exactness.

    What is small is alike on small discs only; of large copies a small disc tells little in a picture with many alike.
    """
    first = order[:MAX_WIDENED]
    if not first:
        return order
    affines, centres = (
        np.stack([getattr(screened[p], name)[i] for _, p, i in first]) for name in ("affines", "centres")
    )
    radii = np.full(len(first), float(alignment.MAX_RADIUS))
    _, _, _, values = alignment.screen(canvas, affines, centres, radii)
    large = [first[k] for k in np.argsort(-values[:, 1], kind="stable") if values[k, 1] > MIN_FINE]
    exactness = np.array([screened[p].exactness[i] for _, p, i in order])
    whole = [order[k] for k in np.argsort(-exactness, kind="stable") if exactness[k] > MIN_EXACTNESS]
    turns = itertools.zip_longest(first, large, whole)
    return [entry for entries in turns for entry in entries if entry] + order[MAX_WIDENED:]


class _Known:
    """Maps that were looked at: a candidate that says the same again is passed over."""

    def __init__(self) -> None:
        self.affines = np.zeros((0, 2, 3))
        self.boxes = np.zeros((0, 4))  # left, top, right, bottom: where the map holds
        self.limits = np.zeros((0, 2))  # pixels by which a candidate may differ, and how far from its centre

    def add(self, affine: np.ndarray, box: Sequence[float], tolerance: float, span: float = 0.0) -> None:
        """Remember a map (2, 3)."""
        self.affines = np.concatenate([self.affines, affine[None]])
        self.boxes = np.concatenate([self.boxes, np.array(box, float)[None]])
        self.limits = np.concatenate([self.limits, [[tolerance, span]]])

    def add_candidate(self, affine: np.ndarray, centre: np.ndarray) -> None:
        """Remember what is verified now: another one near it has to differ in its map."""
        self.add(affine, (*(centre - 10), *(centre + 10)), 4.0, 6.0)

    def add_region(self, affine: np.ndarray, x: int, y: int, mask: np.ndarray, tolerance: float) -> None:
        """Remember what a candidate grew to."""
        self.add(affine, (x - 2.5, y - 2.5, x + mask.shape[1] + 1.5, y + mask.shape[0] + 1.5), tolerance)

    def add_copy(self, copy: Copy) -> None:
        """Remember a copy that is kept, in both directions."""
        self.add_region(copy.affine, copy.source.x, copy.source.y, copy.source.mask, 4.0)
        self.add_region(alignment.invert(copy.affine), copy.target.x, copy.target.y, copy.target.mask, 4.0)

    def __contains__(self, candidate: tuple[np.ndarray, np.ndarray]) -> bool:
        return _is_known(*candidate, self.affines, self.boxes, self.limits)


@numba.njit(cache=True)
def _is_known(
    affine: np.ndarray, centre: np.ndarray, affines: np.ndarray, boxes: np.ndarray, limits: np.ndarray
) -> bool:
    """Whether one of the maps that hold around the centre takes it, and what is near it, to the same place."""
    x, y = centre
    for i in range(len(affines)):
        if not (boxes[i, 0] < x < boxes[i, 2] and boxes[i, 1] < y < boxes[i, 3]):
            continue
        apart, span = affines[i] - affine, limits[i, 1]
        most = 0.0
        for dx, dy in ((0.0, 0.0), (span, 0.0), (0.0, span)):
            for r in range(2):
                most = max(most, abs(apart[r, 0] * (x + dx) + apart[r, 1] * (y + dy) + apart[r, 2]))
        if most < limits[i, 0]:
            return True
    return False


def _same_copy(copy: Copy, source: Region, target: Region, affine: np.ndarray) -> bool:
    """Whether a verified copy joins the same two regions, or larger ones, by the same map, in either direction."""
    if source.mask.sum() > 2 * copy.source.mask.sum():
        return False
    for a, b, known in (
        (copy.source, copy.target, copy.affine),
        (copy.target, copy.source, alignment.invert(copy.affine)),
    ):
        if _shared(a, source) and _shared(b, target):
            # Where both have it: the middle of what the two boxes share.
            x = (max(a.x, source.x) + min(a.x + a.mask.shape[1], source.x + source.mask.shape[1])) / 2
            y = (max(a.y, source.y) + min(a.y + a.mask.shape[0], source.y + source.mask.shape[0])) / 2
            middle = np.array([[x, y]])
            if np.abs(alignment.apply(known, middle) - alignment.apply(affine, middle)).max() < 6:
                return True
    return False


def _support(evidence: Evidence, centres: np.ndarray, partners: np.ndarray) -> int:
    """Screened candidates (n, 2), at different places of the region, that agree with its map in either direction."""
    places = set()
    for points, others in ((centres, partners), (partners, centres)):
        inside = _within(evidence.mask, points, evidence.x, evidence.y)
        agree = np.abs(alignment.apply(evidence.affine, points[inside]) - others[inside]).max(axis=1) < 3
        places.update(map(tuple, (points[inside][agree] // 4).astype(int)))
    return len(places)


def _keep(search: _Search, kind: str, evidence: Evidence, facts: dict[str, float]) -> bool:
    """Whether it is a copy that was not known."""
    source = _cut(evidence.mask, evidence.x, evidence.y)
    target = warp_region(source, evidence.affine, search.canvas.shape)
    if target is not None and _overlap(source, target) > 0.3 * source.mask.sum():
        # Side by side: the region holds a copy and its own copy. In a row of more than three it merely repeats.
        whole, source = source, _without(source, target)
        if source is None or source.mask.sum() < MIN_OF_CHAIN * whole.mask.sum():
            return False
        target = warp_region(source, evidence.affine, search.canvas.shape)
    if target is None:
        return False
    if any(_same_copy(copy, source, target, evidence.affine) for copy in search.copies):
        return False
    inliers = round(math.exp(max(facts["votes"], facts["support"])))
    score = calibrated_score(facts)
    search.copies.append(Copy(kind, evidence.affine, inliers, evidence.local, score, source, target))
    search.evidence.append(facts)
    return True


def _share_outlines(search: _Search) -> None:
    """Cut what grew beyond a better proven copy of its content down to that, where it agrees better there.

    Tiles, ripples and bricks fit beside a copy too, and of several copies one grows further over them than another.
    """
    threshold = score_threshold(search.settings.max_false_alarms)
    order = sorted(range(len(search.copies)), key=lambda k: -search.copies[k].score)
    for place, k in enumerate(order):
        if search.copies[k].kind != "exact" and not search.late():
            better = [copy for b in order[:place] if (copy := search.copies[b]).score >= threshold]
            search.copies[k], search.evidence[k] = _within_outline(search, k, better, threshold)


def _within_outline(search: _Search, k: int, better: Sequence[Copy], threshold: float) -> tuple[Copy, dict[str, float]]:
    """A copy and its measures within the first outline of these where it agrees better; as they are without any."""
    copy, facts, shape = search.copies[k], search.evidence[k], search.canvas.shape
    for known in itertools.chain.from_iterable((other.source, other.target) for other in better):
        mask = _common(copy, known, shape)
        if mask is None:
            continue
        evidence = alignment.measure(search.canvas, alignment.from_mask(copy.affine, mask), MIN_MARGINS[0])
        if evidence is None or not _holds(evidence):
            continue
        beyond = copy.source.full(shape) & (cv2.dilate(mask.astype(np.uint8), np.ones((9, 9), np.uint8)) == 0)
        rest = beyond.any() and alignment.measure(search.canvas, alignment.from_mask(copy.affine, beyond))
        if rest and rest.residual < REST_RESIDUAL * evidence.residual:
            continue
        votes, support = (round(math.exp(facts[name])) for name in ("votes", "support"))
        told = features(evidence, votes, support, facts["usual"], search.canvas.noise)
        score = calibrated_score(told)
        agrees = told["fine"] >= facts["fine"] + MIN_BETTER and told["fine_margin"] >= facts["fine_margin"]
        source = _cut(evidence.mask, evidence.x, evidence.y)
        target = warp_region(source, copy.affine, shape)
        if agrees and target is not None and score >= min(copy.score, threshold):
            return replace(copy, correlation=evidence.local, score=score, source=source, target=target), told
    return copy, facts


def _common(copy: Copy, outline: Region, shape: tuple[int, int]) -> np.ndarray | None:
    """Mask (H, W) bool of a copy's source within an outline that lies in its source or target; None unless smaller."""
    for region, back in ((copy.source, None), (copy.target, alignment.invert(copy.affine))):
        area = outline.mask.sum()
        if _overlap(outline, region) < MIN_COMMON[0] * area or region.mask.sum() < MIN_COMMON[1] * area:
            continue
        there = outline if back is None else warp_region(outline, back, shape)
        mask = copy.source.full(shape) & there.full(shape) if there else None
        if mask is not None and mask.sum() >= MIN_AREA:
            return mask
    return None


def features(evidence: Evidence, votes: int, support: int, usual: float, noise: float) -> dict[str, float]:
    """What the calibration looks at, under the names of `FEATURES`, and the exactness.

    Correlations go through Fisher's transform; `usual` is the fine correlation that candidates of this picture have.
    """
    stretch = np.linalg.svd(evidence.affine[:, :2], compute_uv=False)
    return {
        "fine": math.atanh(min(max(evidence.fine, -0.99), 0.99)),
        "fine_core": math.atanh(min(max(evidence.fine_core, -0.99), 0.99)),
        "grain_core": math.atanh(min(max(evidence.grain_core, -0.99), 0.99)),
        "grain": math.atanh(min(max(evidence.grain, -0.99), 0.99)),
        "support": math.log(max(support, 1)),
        "band": math.atanh(min(max(evidence.band, -0.99), 0.99)),
        "local": math.atanh(min(max(evidence.local, -0.99), 0.99)),
        "exactness": evidence.exactness,
        "size": math.log(max(evidence.informative, 1) / 400),
        "texture": math.log(evidence.texture + 0.3),
        "second": math.atanh(min(max(evidence.second, -0.99), 0.99)),
        "filled": evidence.informative / float(evidence.mask.sum()),
        "usual": usual,
        "around": evidence.around,
        "votes": math.log(votes),
        "fine_margin": evidence.fine_margin,
        "middle_margin": evidence.middle_margin,
        "residual": math.log(evidence.residual),
        "jump": math.log(evidence.jump),
        "noise": math.log(noise),
        "area": math.log(float(evidence.mask.sum())),
        "stretch": math.log(stretch[0] / stretch[1]),
        "zoom": abs(math.log(alignment.scale_of(evidence.affine))),
    }


@functools.cache
def _calibration() -> dict:
    if not CALIBRATION.is_file():
        raise FileNotFoundError(f"there is no file {CALIBRATION}; make it with benchmark.py calibrate")
    return read_json(CALIBRATION)


@functools.cache
def _trees() -> tuple[np.ndarray, ...]:
    """Feature, threshold, left, right and value of every node: (trees, nodes) each."""
    written = _calibration()["trees"]
    nodes = max(len(tree["feature"]) for tree in written)
    return tuple(
        np.array([tree[name] + [0] * (nodes - len(tree[name])) for tree in written])
        for name in ("feature", "threshold", "left", "right", "value")
    )


def calibrated_score(facts: dict[str, float]) -> float:
    """Probability of a true copy, from the logistic model in weights/evidence.json."""
    feature, threshold, left, right, value = _trees()
    x = np.array([facts[name] for name in _calibration()["features"]])
    tree, node = np.arange(len(feature)), np.zeros(len(feature), np.int64)
    while True:
        below = np.where(x[feature[tree, node]] <= threshold[tree, node], left[tree, node], right[tree, node])
        if (below == node).all():  # every tree is at a leaf
            break
        node = below
    total = _calibration()["start"] + float(value[tree, node].sum())
    return 1 / (1 + math.exp(-min(max(total, -30.0), 30.0)))


def score_threshold(max_false_alarms: float) -> float:
    """Least score of a copy for a share of authentic pictures with a false alarm, from the calibration's table."""
    if not 0 < max_false_alarms <= 1:
        raise InputError(f"max_false_alarms is {max_false_alarms}; it must be over 0 and at most 1")
    shares, scores = np.array(_calibration()["thresholds"]).T
    # Scores crowd at 1: the table is interpolated on the log-odds.
    odds = np.interp(math.log(max_false_alarms), np.log(shares), scores)
    return float(1 / (1 + np.exp(-odds)))


# Regions and instances ------------------------------------------------------------------------------------------


def warp_region(region: Region, affine: np.ndarray, shape: tuple[int, int]) -> Region | None:
    """Place of a region under a map, cut at the picture's border; None where nothing is left."""
    h, w = region.mask.shape
    corners = np.array([[-1, -1], [w, -1], [-1, h], [w, h]], float)
    moved = alignment.apply(affine, corners + np.array([region.x, region.y]))
    x0, y0 = np.maximum(np.floor(moved.min(axis=0)).astype(int), 0)
    x1, y1 = np.minimum(np.ceil(moved.max(axis=0)).astype(int) + 1, (shape[1], shape[0]))
    if x1 <= x0 or y1 <= y0:
        return None
    local = affine.copy()
    local[:, 2] += affine[:, :2] @ (region.x, region.y) - (x0, y0)
    mask = cv2.warpAffine(region.mask.astype(np.float32), local, (int(x1 - x0), int(y1 - y0)), flags=cv2.INTER_LINEAR)
    mask = mask > 0.5
    return Region(int(x0), int(y0), mask) if mask.any() else None


def _overlap(a: Region, b: Region) -> int:
    """Pixels in both regions."""
    x0, y0 = max(a.x, b.x), max(a.y, b.y)
    x1 = min(a.x + a.mask.shape[1], b.x + b.mask.shape[1])
    y1 = min(a.y + a.mask.shape[0], b.y + b.mask.shape[0])
    if x1 <= x0 or y1 <= y0:
        return 0
    part_a = a.mask[y0 - a.y : y1 - a.y, x0 - a.x : x1 - a.x]
    return int((part_a & b.mask[y0 - b.y : y1 - b.y, x0 - b.x : x1 - b.x]).sum())


def _without(a: Region, b: Region) -> Region | None:
    """What of a region isn't in the other one; None where nothing is left."""
    x0, y0 = min(a.x, b.x), min(a.y, b.y)
    shape = (
        max(a.y + a.mask.shape[0], b.y + b.mask.shape[0]) - y0,
        max(a.x + a.mask.shape[1], b.x + b.mask.shape[1]) - x0,
    )
    moved = (Region(r.x - x0, r.y - y0, r.mask).full(shape) for r in (a, b))
    rest = next(moved) & ~next(moved)
    rest = cv2.morphologyEx(rest.astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)) > 0
    if not rest.any():
        return None
    return _cut(rest, x0, y0)


def _cut(mask: np.ndarray, x: int, y: int) -> Region:
    """Region of a mask (h, w) whose left upper pixel is (x, y) in the picture."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    part = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return Region(x + int(columns[0]), y + int(rows[0]), part)


def _shared(a: Region, b: Region) -> bool:
    """Whether two regions are one: they overlap by half of the smaller."""
    return 2 * _overlap(a, b) > min(a.mask.sum(), b.mask.sum())


def group_copies(copies: Sequence[Copy], shape: tuple[int, int]) -> list[Instance]:
    """Instances of copies: those that share a region belong to one content (graph of matches); best first.

    Regions are shared when they overlap by half of the smaller one; contents that merely touch stay apart.
    """
    parent = list(range(len(copies)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for i, a in enumerate(copies):
        for j in range(i):
            if _same_content(a, copies[j]):
                parent[root(i)] = root(j)
    groups: dict[int, list[Copy]] = {}
    for i, copy in enumerate(copies):
        groups.setdefault(root(i), []).append(copy)
    instances = []
    for members in groups.values():
        mask = np.zeros(shape, bool)
        for copy in members:
            for region in (copy.source, copy.target):
                h, w = region.mask.shape
                mask[region.y : region.y + h, region.x : region.x + w] |= region.mask
        instances.append(Instance(mask, max(copy.score for copy in members), tuple(members)))
    return sorted(instances, key=lambda instance: -instance.score)
