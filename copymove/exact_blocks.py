"""Bit-identical copies: equal blocks vote for maps, and the pixels that are equal under a map make a region."""

from dataclasses import dataclass

import cv2
import numpy as np

from copymove.block_hashes import BLOCK, VARIANTS, hash_blocks, pixel_codes, relative_variants, repeated_hashes
from copymove.geometry import on_jpeg_grid
from copymove.regions import region_of_mask

MAX_REPEATS = 12  # a block that occurs more often belongs to a pattern or to a drawing
MIN_BLOCKS = 10  # votes that a map needs
MAX_MAPS = 64  # most maps that are looked at, the strongest first
MIN_AREA = 90  # least number of pixels of a region, and of those that its identical blocks cover
# Share of pixels that are equal to a neighbour of theirs, above which a region is a flat area of a compressed image:
MAX_SELF_EQUAL = 0.55  # usually
MAX_SELF_EQUAL_SOLID = 0.65  # where identical blocks lie side by side, which is rare in a flat area
MAX_SELF_EQUAL_ON_GRID = 0.25  # for maps of JPEG blocks onto JPEG blocks: few values make a block, so blocks recur
# Identical blocks per pixel of a region: below the first they are there by chance, above the second side by side.
MIN_DENSITY, SOLID = 0.05, 0.3
NEIGHBOURS = ((0, 1), (1, 0), (0, 8), (8, 0), (8, 8), (8, -8))  # offsets (y, x); 8 is the grid of JPEG blocks
MAX_GAP = 3  # pixels between a place and its mirror image up to which a thing is symmetrical, and no copy
MAX_FEATHER = 8  # widest blended edge that is recognised, in pixels
MIN_STEP = 5.0  # grey levels by which the surroundings must differ for a blended edge to be visible
FLAT_REACH = 9  # pixels around textured ones within which flat equal pixels belong to a copy
OFFSET_BITS, OFFSET_ZERO = 24, 1 << 22  # how a map is packed into one integer

Map = tuple[
    int, int, int
]  # variant and offsets (dy, dx): twice a place (y, x) goes to VARIANTS[variant] @ it + offsets
_RELATIVE = relative_variants()


@dataclass(frozen=True)
class ExactCopy:
    """One map and the pixels that are equal under it."""

    affine: np.ndarray  # (2, 3) float64: takes a source pixel (x, y, 1) to its place (x, y) in the copy
    covered_pixels: int  # number of pixels that identical blocks cover
    density: float  # identical blocks per pixel of the region
    x: int  # left edge of the source's box
    y: int  # top edge
    mask: np.ndarray  # (h, w) bool: the source's pixels in that box, with those of a blended edge


def find_exact_blocks(image: np.ndarray, min_distance: int = 8) -> list[ExactCopy]:
    """Bit-identical copies in an image (H, W, 3) uint8, also rotated by right angles and mirrored, the largest first.

    Args:
        min_distance: least distance in pixels, along x or y, between two identical blocks.
    """
    if min(image.shape[:2]) < 2 * BLOCK:
        return []
    codes = pixel_codes(image)
    hashes, variants = hash_blocks(codes)
    found = []
    for exact_map, sources in _vote_for_maps(hashes, variants, min_distance):
        corner = sources + BLOCK // 2
        if _self_equal(codes, corner[:, 0], corner[:, 1]) > MAX_SELF_EQUAL_SOLID:  # before the slower tracing
            continue
        copies = _trace_regions(codes, exact_map, sources)
        found.extend(part for part in copies if _self_equal(codes, *_pixels(part)) < _max_self_equal(part))
    return sorted((_with_blended_edge(image, copy) for copy in found), key=lambda copy: -copy.covered_pixels)


def _max_self_equal(copy: ExactCopy) -> float:
    if on_jpeg_grid(copy.affine, np.zeros(2)):
        return MAX_SELF_EQUAL_ON_GRID
    return MAX_SELF_EQUAL_SOLID if copy.density > SOLID else MAX_SELF_EQUAL


def _vote_for_maps(hashes: np.ndarray, variants: np.ndarray, min_distance: int) -> list[tuple[Map, np.ndarray]]:
    """Maps with enough votes, each with the upper left corners (n, 2) (y, x) of its source blocks, strongest first."""
    p, q = _equal_pairs(hashes)
    if len(p) == 0:
        return []
    ys, xs = np.divmod(p, hashes.shape[1])
    yt, xt = np.divmod(q, hashes.shape[1])
    relative = _RELATIVE[variants.ravel()[p], variants.ravel()[q]]
    # Twice the coordinates of the blocks' centres keep everything in integers.
    sy, sx, ty, tx = (2 * v + BLOCK - 1 for v in (ys, xs, yt, xt))
    m = VARIANTS[relative]
    dy = ty - (m[:, 0, 0] * sy + m[:, 0, 1] * sx)
    dx = tx - (m[:, 1, 0] * sy + m[:, 1, 1] * sx)
    far = np.maximum(abs(yt - ys), abs(xt - xs)) >= min_distance
    packed = (relative << (2 * OFFSET_BITS)) + ((dy + OFFSET_ZERO) << OFFSET_BITS) + (dx + OFFSET_ZERO)
    packed, corners = packed[far], np.stack([ys, xs], axis=1)[far]
    order, starts, sizes = _runs(packed)
    result = []
    for run in np.argsort(-sizes, kind="stable")[:MAX_MAPS]:
        if sizes[run] < MIN_BLOCKS:
            break
        members = order[starts[run] : starts[run] + sizes[run]]
        result.append((_unpack(int(packed[members[0]])), corners[members]))
    return result


def _equal_pairs(hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flat indices (n,) of both blocks of every pair with equal hashes, unless they occur too often."""
    candidates = repeated_hashes(hashes)
    order, starts, sizes = _runs(hashes.ravel()[candidates])
    candidates = candidates[order]
    first, second = [], []
    for step in range(1, MAX_REPEATS):
        for offset in range(MAX_REPEATS - step):  # the pair of this place in a run, and the one `step` further
            chosen = starts[(sizes <= MAX_REPEATS) & (sizes > offset + step)] + offset
            first.append(candidates[chosen])
            second.append(candidates[chosen + step])
    return np.concatenate(first), np.concatenate(second)


def _runs(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Order that sorts values (n,), and where in it each run of equal values starts, and its length."""
    order = np.argsort(values, kind="stable")
    _, starts, sizes = np.unique(values[order], return_index=True, return_counts=True)
    return order, starts, sizes


def _unpack(packed: int) -> Map:
    low = (1 << OFFSET_BITS) - 1
    return (
        packed >> (2 * OFFSET_BITS),
        ((packed >> OFFSET_BITS) & low) - OFFSET_ZERO,
        (packed & low) - OFFSET_ZERO,
    )


def _trace_regions(codes: np.ndarray, exact_map: Map, sources: np.ndarray) -> list[ExactCopy]:
    """Regions of equal pixels around the blocks that voted for a map.

    Args:
        codes: (H, W) uint32.
        sources: upper left corners (n, 2) (y, x) of these blocks.
    """
    self_inverse = _is_self_inverse(exact_map)
    if self_inverse:
        sources, direction = _with_partners(exact_map, sources)
    reach = 2 * FLAT_REACH
    y0, x0 = np.maximum(sources.min(axis=0) - reach, 0)
    y1, x1 = np.minimum(sources.max(axis=0) + BLOCK + reach, codes.shape)
    ys, xs = np.mgrid[y0:y1, x0:x1]
    ty, tx = _places_in_copy(exact_map, ys, xs)
    blocks = np.zeros(ys.shape, np.uint8)
    blocks[sources[:, 0] - y0, sources[:, 1] - x0] = 1
    textured = cv2.dilate(blocks, np.ones((BLOCK, BLOCK), np.uint8), anchor=(BLOCK - 1, BLOCK - 1))
    not_flat = _not_flat(codes[y0:y1, x0:x1])
    region = _copied_pixels(_equal_pixels(codes, ys, xs, ty, tx), textured, not_flat)
    symmetrical = np.zeros(ys.shape, bool)
    if self_inverse:
        region &= direction[0] * (ty - ys) + direction[1] * (tx - xs) > 0
        # Flat places do not count: the gutter between two panels is symmetrical, too.
        here = (textured > 0) & (cv2.erode(not_flat, np.ones((3, 3), np.uint8)) > 0)
        symmetrical = here & (np.maximum(abs(ty - ys), abs(tx - xs)) <= MAX_GAP)
    found = []
    for mask in _parts(region):
        covered = int((textured[mask] > 0).sum())
        if mask.sum() < MIN_AREA or covered < MIN_AREA or (symmetrical & mask).any():
            continue
        density = float(blocks[mask].sum() / mask.sum())
        if density > MIN_DENSITY:
            found.append(_copy(_affine(exact_map), covered, density, mask, (int(y0), int(x0))))
    return found


def _is_self_inverse(exact_map: Map) -> bool:
    """Whether a map is a reflection or a half turn, so that it also takes the copy back to its source."""
    linear, shift = VARIANTS[exact_map[0]], np.array(exact_map[1:])
    return bool((linear @ linear == np.eye(2)).all() and (linear @ shift + shift == 0).all())


def _with_partners(exact_map: Map, sources: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both blocks of each pair under a map that is its own inverse, and the direction (y, x) from source to copy.

    One block of each pair has voted, some on the side of the source, some on that of the copy. The direction is the one
    along which most blocks move.
    """
    copies = (2 * sources + BLOCK - 1) @ VARIANTS[exact_map[0]].T + np.array(exact_map[1:])
    partners = (copies - BLOCK + 1) // 2
    moved = (partners - sources).astype(float)
    return np.concatenate([sources, partners]), np.linalg.eigh(moved.T @ moved)[1][:, 1]


def _places_in_copy(exact_map: Map, ys: np.ndarray, xs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns to which a map takes pixels."""
    variant, dy, dx = exact_map
    matrix = VARIANTS[variant]
    ty = (2 * (matrix[0, 0] * ys + matrix[0, 1] * xs) + dy) // 2
    tx = (2 * (matrix[1, 0] * ys + matrix[1, 1] * xs) + dx) // 2
    return ty, tx


def _equal_pixels(codes: np.ndarray, ys: np.ndarray, xs: np.ndarray, ty: np.ndarray, tx: np.ndarray) -> np.ndarray:
    """(h, w) uint8: 1 where the pixels (ys, xs) equal those at (ty, tx) inside of the image."""
    inside = (ty >= 0) & (ty < codes.shape[0]) & (tx >= 0) & (tx < codes.shape[1])
    equal = np.zeros(ys.shape, np.uint8)
    equal[inside] = codes[ys[inside], xs[inside]] == codes[ty[inside], tx[inside]]
    return equal


def _copied_pixels(equal: np.ndarray, textured: np.ndarray, not_flat: np.ndarray) -> np.ndarray:
    """(h, w) uint8: 1 for the equal pixels that belong to a copy: those near identical blocks, and those with texture.

    Args:
        equal, textured, not_flat: (h, w) uint8; `textured` is 1 where identical blocks lie.
    """
    reach = 2 * FLAT_REACH
    ellipse = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * FLAT_REACH + 1, 2 * FLAT_REACH + 1))
    near = cv2.morphologyEx(
        cv2.copyMakeBorder(textured, reach, reach, reach, reach, cv2.BORDER_CONSTANT), cv2.MORPH_CLOSE, ellipse
    )
    near = near[reach:-reach, reach:-reach]
    # A single equal pixel is chance, a square of 3 x 3 is not.
    region = cv2.morphologyEx(equal, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)) & (near | not_flat)
    region |= textured & equal
    # In the dark, where there are few grey levels, squares are equal by chance, too: they hold no identical block.
    count, labels = cv2.connectedComponents(region, connectivity=4)
    region &= near | (np.bincount(labels.ravel(), textured.ravel(), count) > 0)[labels]
    return region


def _not_flat(codes: np.ndarray) -> np.ndarray:
    """(h, w) uint8: 1 where the 3 x 3 neighbourhood has more than one colour."""
    values = codes.astype(np.float32)  # exact for 24 bits
    square = np.ones((3, 3), np.uint8)
    return (cv2.dilate(values, square) != cv2.erode(values, square)).astype(np.uint8)


def _self_equal(codes: np.ndarray, ys: np.ndarray, xs: np.ndarray) -> float:
    """Largest share of pixels that equal their neighbour at one of `NEIGHBOURS`: high in smooth areas of a JPEG."""
    height, width = codes.shape
    own = codes[ys, xs]
    return max(float((own == codes[(ys + dy) % height, (xs + dx) % width]).mean()) for dy, dx in NEIGHBOURS)


def _pixels(copy: ExactCopy) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the source's pixels in the image."""
    ys, xs = np.nonzero(copy.mask)
    return ys + copy.y, xs + copy.x


def _parts(region: np.ndarray) -> list[np.ndarray]:
    """Masks (h, w) bool of the copies in a region: parts that lie near each other are one copy with flat areas."""
    joined = cv2.dilate(region, np.ones((2 * FLAT_REACH + 1,) * 2, np.uint8))
    count, labels = cv2.connectedComponents(joined)
    return [(region > 0) & (labels == label) for label in range(1, count)]


def _copy(
    affine: np.ndarray, covered_pixels: int, density: float, mask: np.ndarray, corner: tuple[int, int]
) -> ExactCopy:
    """Copy of a mask (h, w) whose upper left pixel is `corner` (y, x) of the image, cut to its bounding box."""
    region = region_of_mask(mask, corner[1], corner[0])
    return ExactCopy(affine, covered_pixels, density, region.x, region.y, region.mask)


def _with_blended_edge(image: np.ndarray, copy: ExactCopy) -> ExactCopy:
    """The copy with its blended edge, where it has one.

    Around a hard edge, source and copy differ at once as much as unrelated things do. Across a blended edge the
    difference grows in even steps, ring by ring, until it reaches that plateau.
    """
    reach = MAX_FEATHER + 4
    height, width = image.shape[:2]
    box_h, box_w = copy.mask.shape
    y0, x0 = max(copy.y - reach, 0), max(copy.x - reach, 0)
    y1, x1 = min(copy.y + box_h + reach, height), min(copy.x + box_w + reach, width)
    mask = np.zeros((y1 - y0, x1 - x0), np.uint8)
    mask[copy.y - y0 : copy.y - y0 + box_h, copy.x - x0 : copy.x - x0 + box_w] = copy.mask
    ys, xs = np.mgrid[y0:y1, x0:x1]
    moved = np.rint(np.tensordot(copy.affine[:, :2], np.stack([xs, ys]), 1) + copy.affine[:, 2, None, None]).astype(int)
    inside = (moved[0] >= 0) & (moved[1] >= 0) & (moved[0] < width) & (moved[1] < height)
    there = image[moved[1].clip(0, height - 1), moved[0].clip(0, width - 1)]
    difference = cv2.absdiff(image[y0:y1, x0:x1], there).mean(axis=2)
    distance = np.rint(cv2.distanceTransform(1 - mask, cv2.DIST_L2, 5))
    rings = [difference[inside & (distance == k)] for k in range(1, reach + 1)]
    steps = np.array([ring.mean() if len(ring) else 0.0 for ring in rings])
    feather = _feather_width(steps, min(MAX_FEATHER, int(np.sqrt(copy.mask.sum()) / 5)))
    if feather == 0:
        return copy
    return _copy(copy.affine, copy.covered_pixels, copy.density, (distance <= feather) & inside, (y0, x0))


def _feather_width(steps: np.ndarray, widest: int) -> int:
    """Width in pixels of a blended edge, from the mean difference (n,) of each ring around a copy; 0 for a hard edge.

    Args:
        widest: largest width that is tried: a wider edge would have left little that is equal.
    """
    fits = {}
    for feather in range(2, widest + 1):
        plateau = float(np.median(steps[feather : feather + 4]))
        if plateau < MIN_STEP or steps[feather] < 0.8 * plateau:
            continue
        off = steps[:feather] / plateau - np.arange(1, feather + 1) / (feather + 1)
        if off.min() > -0.15 and off.max() < 0.05:
            fits[feather] = float(np.abs(off).max())
    return min(fits, key=fits.get, default=0)


def _affine(exact_map: Map) -> np.ndarray:
    """(2, 3) float64 map in (x, y) of a map in (y, x) with doubled offsets."""
    variant, dy, dx = exact_map
    m = VARIANTS[variant].astype(float)
    return np.array([[m[1, 1], m[1, 0], dx / 2], [m[0, 1], m[0, 0], dy / 2]])
