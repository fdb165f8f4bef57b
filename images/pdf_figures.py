"""From what a page of a PDF holds to its figures: which images and lines belong together, what they are called, and how
they are drawn. Works on the plain data of pdf_survey.py and needs no PDFium.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace

import cv2
import numpy as np

from images.not_examined import FURNITURE, LINE_ART, TEXT
from images.pdf import LEAST_SIDE, Box, Figure, Omission, Patch, View
from images.pdf_captions import Caption, Line, captions_of, running_text
from images.pdf_page import common, cut, map_box, union, view_of
from images.pdf_survey import PageSurvey, Raster

GAP = 6.0  # images that are nearer to each other are one figure, in points
PANEL_GAP = 18.0  # so are the panels of a figure without a caption, with no text between
LINE_GAP = 10.0  # lines that are nearer to each other are one drawing
POINTS_PER_INCH = 72.0
MIXED_DPI = 300.0  # least resolution at which a figure of images and lines is drawn
MAX_DPI = 600.0  # finest resolution at which a figure of several images is drawn
ICON = 40.0  # points; what is smaller in both directions is no figure
LEAST_DRAWING = 50.0  # points, least side of a drawing that counts
LEAST_DRAWN = 3  # curves and slanted lines of a drawing without a caption
LEAST_PATHS = 5  # paths of any kind that make a drawing beside an image
RULE = 2.0  # points; a straight line that is thinner may be a rule of the page
MIXED_SHARE = 0.25  # of its images' area that a figure's lines cover beyond them, from which it is a mixed one
IMAGE_SHARE = 0.02  # of a figure's area that small images must cover to make it more than line art
TEXT_LINES = 3  # lines of running text between an image and a caption, from which they do not belong together
REPEATS = 3  # pages on which the same small image makes it furniture
SMALL_SHARE = 0.1  # of the page's area, to which an image is a small one
MAX_PATCHES = 64  # images of a figure that are drawn one by one
LONE = 100.0  # points; a smaller image without a label is no figure where others have labels


@dataclass
class Drawing:
    """Lines and areas that stand together."""

    box: Box
    paths: int
    drawn: int  # curves and slanted lines among them


@dataclass
class Group:
    """What makes one figure."""

    rasters: list[Raster] = field(default_factory=list)
    drawings: list[Drawing] = field(default_factory=list)
    caption: Caption | None = None

    @property
    def box(self) -> Box:
        """Around all images, as far as they are seen."""
        return union([raster.shown for raster in self.rasters])


def furniture_of(pages: Sequence[PageSurvey]) -> tuple[set[tuple[int, int]], list[Omission]]:
    """Images that stand in the same place of several pages: (page from 0, number of the image); how often each does."""
    places: dict[tuple, list[tuple[int, int]]] = defaultdict(list)
    for number, page in enumerate(pages):
        for k, raster in enumerate(page.rasters):
            if raster.index is not None and _area(raster.box) < SMALL_SHARE * page.width * page.height:
                places[(raster.digest, *(round(v / 2) for v in raster.box))].append((number, k))
    repeated = [found for found in places.values() if len({number for number, _ in found}) >= REPEATS]
    omissions = [
        Omission(None, f"the same image in the same place of {len({n for n, _ in found})} pages", FURNITURE, len(found))
        for found in repeated
    ]
    return {place for found in repeated for place in found}, omissions


def figures_of(page: PageSurvey, number: int, left_out: Collection[int]) -> tuple[list[Figure], list[Omission]]:
    """The figures of a page in reading order, the hidden ones last; and what is not examined.

    Args:
        number: of the page, from 1.
        left_out: numbers of images that are page furniture.
    """
    captions = captions_of(page.lines)
    text = running_text(page.lines, captions)
    rasters = [raster for k, raster in enumerate(page.rasters) if k not in left_out]
    drawings = _drawings(page, captions, text)
    groups = _group(rasters, drawings, captions, text)
    figures, omissions, icons = [], [], 0
    for group in sorted(groups, key=lambda group: (group.box[1], group.box[0])):
        figure = _figure(page, group, number, len(figures) + 1)
        if max(_size(group.box)) < ICON and group.caption is None:
            icons += 1
        elif min(figure.view.width, figure.view.height) < LEAST_SIDE:
            omissions.append(
                Omission(number, figure.label or "image", f"smaller than {LEAST_SIDE} x {LEAST_SIDE} pixels")
            )
        else:
            figures.append(figure)
    omissions += [Omission(number, "icon", FURNITURE, icons)] if icons else []
    omissions += _line_art(drawings, groups, captions, text, number)
    for raster in rasters:
        if raster.hides and min(raster.width, raster.height) >= LEAST_SIDE and max(_size(raster.box)) >= ICON:
            figures.append(Figure(number, len(figures) + 1, raster.box, hidden=True, image=raster.index))
    return figures, omissions


def _group(
    rasters: Sequence[Raster], drawings: Sequence[Drawing], captions: Sequence[Caption], text: Sequence[Line]
) -> list[Group]:
    """The images of a page by figure, each with its caption and its lines."""
    seen = [raster for raster in rasters if raster.shown is not None]
    clusters = _join(seen, GAP, [])
    by_caption: dict[int, Group] = {}
    lone: list[Raster] = []
    for cluster in clusters:
        chosen = _caption_of(union([raster.shown for raster in cluster]), captions, text)
        if chosen is None:
            lone += cluster
        else:
            by_caption.setdefault(chosen, Group(caption=captions[chosen])).rasters += cluster
    for group in by_caption.values():
        lone += _other_side(group)
    groups = [group for group in by_caption.values() if group.rasters]
    barriers = [*(line.box for line in text), *(caption.box for caption in captions)]
    groups += [Group(rasters=cluster) for cluster in _join(lone, PANEL_GAP, barriers)]
    for drawing in drawings:
        touching = [group for group in groups if _near(drawing.box, group.box, GAP)]
        chosen = _caption_of(drawing.box, captions, text)
        if chosen in by_caption:
            by_caption[chosen].drawings.append(drawing)
        elif chosen is None and touching:
            touching[0].drawings.append(drawing)
    return [group for group in groups if group.rasters]


def _other_side(group: Group) -> list[Raster]:
    """Take away, and return, the images on the unusual side of a caption that has images on both sides."""
    box, usual = group.caption.box, []
    for raster in group.rasters:
        below = raster.shown[1] > (box[1] + box[3]) / 2
        usual.append(
            below == group.caption.is_table or common(raster.shown, (0.0, box[1], math.inf, box[3])) is not None
        )
    if not any(usual):
        return []
    others = [raster for raster, kept in zip(group.rasters, usual, strict=True) if not kept]
    group.rasters = [raster for raster, kept in zip(group.rasters, usual, strict=True) if kept]
    return others


def _join(rasters: Sequence[Raster], gap: float, barriers: Sequence[Box]) -> list[list[Raster]]:
    """Images that are nearer to each other than a gap, with nothing between."""
    clusters: list[tuple[Box, list[Raster]]] = []
    for raster in rasters:
        box, members, rest = raster.shown, [raster], []
        pending = list(clusters)
        while pending:
            near = [c for c in pending if _near(box, c[0], gap) and not _between(box, c[0], barriers)
                    and any(_near(a.shown, b.shown, gap) for a in members for b in c[1])]  # fmt: skip
            rest = [c for c in pending if c not in near]
            if not near:
                break
            box, members = union([box, *(c[0] for c in near)]), members + [r for c in near for r in c[1]]
            pending = rest
        clusters = [*rest, (box, members)]
    return [members for _, members in clusters]


def _between(a: Box, b: Box, barriers: Sequence[Box]) -> bool:
    """Whether a barrier lies in the gap between two boxes."""
    left, right = sorted((max(a[0], b[0]), min(a[2], b[2])))
    top, bottom = sorted((max(a[1], b[1]), min(a[3], b[3])))
    gap = (left, top, right, bottom)
    return any(common(gap, barrier) is not None for barrier in barriers)


def _near(a: Box, b: Box, gap: float) -> bool:
    return a[0] - gap < b[2] and b[0] - gap < a[2] and a[1] - gap < b[3] and b[1] - gap < a[3]


def _caption_of(box: Box, captions: Sequence[Caption], text: Sequence[Line]) -> int | None:
    """The number of the caption that a box most likely belongs to."""
    costs = []
    for number, caption in enumerate(captions):
        whole = union([box, caption.box])
        between = [
            line for line in text
            if common(line.box, whole) and not common(line.box, box) and not common(line.box, caption.box)
        ]  # fmt: skip
        if len(between) < TEXT_LINES:
            costs.append((_distance(box, caption), number))
    cost, number = min(costs, default=(math.inf, None))
    return None if math.isinf(cost) else number


def _distance(box: Box, caption: Caption) -> float:
    """How far a caption is from what stands at a box, in points; more where captions of its kind seldom stand."""
    right, left = caption.box[0] - box[2], box[0] - caption.box[2]
    below, above = caption.box[1] - box[3], box[1] - caption.box[3]
    beside, apart = max(right, left, 0.0), max(below, above, 0.0)
    if beside and apart:  # across a corner
        return 2 * math.hypot(beside, apart) + 20 if max(beside, apart) < 100 else math.inf
    if beside:
        return 1.5 * beside + 10 if beside < 150 else math.inf
    unusual = (above > 0) != caption.is_table
    return 3 * apart + 60 if unusual and apart else apart


def _drawings(page: PageSurvey, captions: Sequence[Caption], text: Sequence[Line]) -> list[Drawing]:
    """Lines and areas that stand together, without the rules of the page and the grounds of its text."""
    boxes = page.paths.astype(float)
    if not len(boxes):
        return []
    limits = np.array([0, 0, page.width, page.height])
    boxes = np.clip(boxes, np.tile(limits[:2], 2), np.tile(limits[2:], 2))
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    rule = (np.minimum(width, height) < RULE) & (np.maximum(width, height) > 0.25 * page.width)
    keep = ~rule & (width * height < 0.6 * page.width * page.height) & (np.maximum(width, height) > 0)
    for line in [*text, *captions]:
        x, y = (line.box[0] + line.box[2]) / 2, (line.box[1] + line.box[3]) / 2
        keep &= ~((boxes[:, 0] < x) & (x < boxes[:, 2]) & (boxes[:, 1] < y) & (y < boxes[:, 3]))
    boxes, drawn = boxes[keep], page.drawn[keep]
    plane = np.zeros((math.ceil(page.height) + 1, math.ceil(page.width) + 1), np.uint8)
    for left, top, right, bottom in np.rint(boxes).astype(int).tolist():
        plane[top : bottom + 1, left : right + 1] = 1
    plane = cv2.dilate(plane, np.ones((int(LINE_GAP), int(LINE_GAP)), np.uint8))
    total, labels = cv2.connectedComponents(plane)
    middles = np.rint(boxes[:, :2]).astype(int)
    which = labels[middles[:, 1], middles[:, 0]]
    drawings = []
    for label in range(1, total):
        members = which == label
        if members.any():
            lower, upper = boxes[members, :2].min(axis=0), boxes[members, 2:].max(axis=0)
            drawings.append(Drawing((*lower.tolist(), *upper.tolist()), int(members.sum()), int(drawn[members].sum())))
    return drawings


def _line_art(
    drawings: Sequence[Drawing], groups: Sequence[Group], captions: Sequence[Caption], text: Sequence[Line], number: int
) -> list[Omission]:
    """Figures of a page that are drawn of lines alone."""
    used = {id(drawing) for group in groups for drawing in group.drawings}
    taken = [group.caption for group in groups]
    labelled: dict[int, float] = defaultdict(float)
    others = 0
    for drawing in drawings:
        if id(drawing) in used or any(common(drawing.box, group.box) for group in groups):
            continue
        chosen = _caption_of(drawing.box, captions, text)
        if chosen is not None and not captions[chosen].is_table:
            labelled[chosen] = max(labelled[chosen], *_size(drawing.box))
        elif chosen is None and min(_size(drawing.box)) >= LEAST_DRAWING and drawing.drawn >= LEAST_DRAWN:
            others += 1
    found = [
        Omission(number, captions[k].label, LINE_ART)
        for k, side in labelled.items()
        if side >= LEAST_DRAWING and captions[k] not in taken
    ]
    return found + ([Omission(number, "drawing without a caption", LINE_ART, others)] if others else [])


def _figure(page: PageSurvey, group: Group, number: int, place: int) -> Figure:
    """How a group is drawn, as one figure."""
    box, raster, patches = group.box, group.rasters[0], []
    lines = [d.box for d in group.drawings if d.drawn >= LEAST_DRAWN or d.paths >= LEAST_PATHS]
    whole = common(union([box, *lines]), (0.0, 0.0, page.width, page.height)) or box
    mixed = bool(lines) and _area(whole) > (1 + MIXED_SHARE) * _area(box)
    finest = max(group.rasters, key=lambda raster: max(raster.resolution))
    if mixed:
        near = [line.box for line in page.lines if _near(line.box, whole, GAP) and not _is_caption(line, group)]
        left, top, right, bottom = union([whole, *near])
        whole = common((left - 2, top - 2, right + 2, bottom + 2), (0.0, 0.0, page.width, page.height)) or whole
        scale = min(max(MIXED_DPI, POINTS_PER_INCH * max(finest.resolution)), MAX_DPI) / POINTS_PER_INCH
        view = view_of(whole, scale)
    elif len(group.rasters) == 1 and raster.upright:
        view = raster.view() if raster.whole else _part(raster.view(), raster.shown)
    else:
        view = _part(_grid(finest), box)
        patches = _patches(group.rasters, view)
    caption = group.caption
    return Figure(
        number,
        place,
        tuple(round(v, 2) for v in (whole if mixed else box)),
        None if caption is None else caption.label,
        None if caption is None else caption.words or None,
        view=view,
        patches=patches,
        own_grid=not mixed and len(group.rasters) == 1 and raster.upright and raster.index is not None,
    )


def _is_caption(line: Line, group: Group) -> bool:
    return len(line.text) >= 60 or (group.caption is not None and common(line.box, group.caption.box) is not None)


def _grid(finest: Raster) -> View:
    """The view of a page at the resolution of an image, as far as that has square pixels of a sensible size."""
    x, y = finest.resolution
    if not finest.upright or abs(x - y) > 0.02 * max(x, y):
        x = y = max(x, y)
    limit = MAX_DPI / POINTS_PER_INCH / max(x, y)
    return view_of(finest.box, x * min(limit, 1), y * min(limit, 1))


def _patches(rasters: Sequence[Raster], view: View) -> list[Patch]:
    """Images of a figure with its resolution, apart from others: their pixels are exact on their own grids."""
    patches = []
    for raster in rasters:
        left, top, right, bottom = map_box(view, raster.box)
        columns, rows = raster.shape
        column, row = round(left), round(top)
        fits = column >= 0 and row >= 0 and column + columns <= view.width and row + rows <= view.height
        same = raster.upright and abs(right - left - columns) < 0.6 and abs(bottom - top - rows) < 0.6
        apart = not any(_overlap(raster.box, other.box) for other in rasters if other is not raster)
        if same and fits and apart and raster.whole and raster.index is not None and len(patches) < MAX_PATCHES:
            patches.append(Patch(raster.index, raster.view(), column, row))
    return patches


def _overlap(a: Box, b: Box) -> bool:
    box = common(a, b)
    return box is not None and min(_size(box)) > 0.5


def _part(view: View, box: Box) -> View:
    """The part of a view that shows a box of the page."""
    left, top, right, bottom = map_box(view, box)
    columns = math.floor(left + 0.1), math.ceil(right - 0.1)
    rows = math.floor(top + 0.1), math.ceil(bottom - 0.1)
    return cut(view, (columns[0], rows[0], max(columns[1], columns[0] + 1), max(rows[1], rows[0] + 1)))


def _size(box: Box) -> tuple[float, float]:
    return box[2] - box[0], box[3] - box[1]


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def without_others(figures: Sequence[Figure], is_text: Callable[[Figure], bool]) -> tuple[list[Figure], list[Omission]]:
    """The figures of a file without images that are none: where others have labels, small ones without (emblems,
    portraits, marks); and, of those without labels, images of text, as `is_text` tells.
    """
    labelled = any(figure.label for figure in figures)
    unnamed = [figure for figure in figures if figure.label is None and not figure.hidden]
    lone = [figure for figure in unnamed if labelled and max(_size(figure.box)) < LONE]
    text = [figure for figure in unnamed if figure not in lone and is_text(figure)]
    places: dict[int, int] = defaultdict(int)
    kept = []
    for figure in figures:
        if figure not in lone and figure not in text:
            places[figure.page] += 1
            kept.append(replace(figure, figure=places[figure.page]))
    omissions = [Omission(figure.page, "small image without a caption", FURNITURE) for figure in lone]
    return kept, omissions + [Omission(figure.page, "image of text or a table", TEXT) for figure in text]
