from dataclasses import dataclass

import cv2
import numba
import numpy as np

from copymove.geometry import on_jpeg_grid

BLOCK = 6  # side of a block in pixels


MIN_CHANGES = 16  # of the 60 neighbouring pairs in a block those that must differ: flat and saturated blocks have few


MAX_REPEATS = 12  # a block that occurs more often belongs to a pattern or to a drawing


MIN_BLOCKS = 10  # votes that a map needs


MAX_MAPS = 64  # most maps looked at, the strongest first


MIN_AREA = 90  # pixels that a copy needs, after the region was traced


MAX_SELF_EQUAL = 0.55  # share of pixels equal to a neighbour of theirs above which a region is a compressed flat area


MAX_SELF_EQUAL_SOLID = 0.65  # the same where identical blocks lie side by side: there are few such in a flat area


MAX_SELF_EQUAL_ON_GRID = (
    0.25  # the same for maps that take JPEG blocks onto blocks: few values make a block, so they recur
)


# Density of identical blocks in a region: under the first they lie there by chance, from the second side by side.
MIN_DENSITY, SOLID = 0.05, 0.3


NEIGHBOURS = ((0, 1), (1, 0), (0, 8), (8, 0), (8, 8), (8, -8))  # 8: the grid of JPEG blocks


MAX_GAP = 3  # pixels between a place and its mirror image up to which a thing is symmetrical and no copy


MAX_FEATHER = 8  # widest blended edge that is recognised, in pixels


MIN_STEP = 5.0  # grey levels by which the surroundings must differ for an edge to be seen at all


FLAT_REACH = 9  # flat equal pixels count as copied this near to textured ones, in pixels


# Matrix of dihedral variant k = transpose * 4 + flip_y * 2 + flip_x, in (y, x): new = M old about the block's centre.
_VARIANTS = np.array(
    [
        (
            np.array([[-1 if k & 2 else 1, 0], [0, -1 if k & 1 else 1]])
            @ (np.array([[0, 1], [1, 0]]) if k & 4 else np.eye(2))
        )
        for k in range(8)
    ]
).astype(np.int64)


@dataclass(frozen=True)
class ExactCopy:
    """One map and the pixels that are equal under it."""

    affine: np.ndarray  # (2, 3) float64, source pixel (x, y, 1) -> copy pixel (x, y)
    covered_pixels: int  # pixels that identical blocks cover
    density: float  # identical blocks per pixel of the region
    x: int  # left edge of the source's box
    y: int  # top edge
    mask: np.ndarray  # (h, w) bool: the source's pixels in that box, with those of a feathered edge


def find_exact_blocks(image: np.ndarray, min_distance: int = 8) -> list[ExactCopy]:
    """Copies identical to the bit in an image (H, W, 3) uint8, most votes first."""
    if min(image.shape[:2]) < 2 * BLOCK:
        return []
    values = _pixel_codes(np.ascontiguousarray(image))
    hashes, variants = _block_hashes(values, _coefficients())
    votes = _vote_for_maps(hashes, variants, values.shape[1], min_distance)
    found = []
    for key, sources in votes:
        corner = sources + BLOCK // 2
        if _self_equal(values, corner[:, 0], corner[:, 1]) > MAX_SELF_EQUAL_SOLID:  # before the costlier tracing
            continue
        copies = _trace_regions(values, key, sources)
        found.extend(part for part in copies if _self_equal(values, *_pixels(part)) < _most_self_equal(part))
    return sorted((_feathered(image, copy) for copy in found), key=lambda copy: -copy.covered_pixels)


def _most_self_equal(copy: ExactCopy) -> float:
    if on_jpeg_grid(copy.affine, np.zeros(2)):
        return MAX_SELF_EQUAL_ON_GRID
    return MAX_SELF_EQUAL_SOLID if copy.density > SOLID else MAX_SELF_EQUAL


def _coefficients() -> np.ndarray:
    """(2, BLOCK) odd random factors for rows and columns."""
    rng = np.random.default_rng(20120601)
    return rng.integers(1, 2**63, (2, BLOCK), dtype=np.uint64) | np.uint64(1)


def _pixel_codes(image: np.ndarray) -> np.ndarray:
    """Colour of every pixel as one uint32."""
    wide = image.astype(np.uint32)
    return (wide[..., 0] << 16) | (wide[..., 1] << 8) | wide[..., 2]


@numba.njit(cache=True)
def _mix(code: int) -> int:
    """splitmix64: spreads a colour over 64 bits, so that sums of products do not collide."""
    z = np.uint64(code) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@numba.njit(cache=True)
def _block_hashes(values: np.ndarray, factors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hash (H - 5, W - 5) uint64 of every block, 0 where the block is flat, and the variant it belongs to.

    H_k = sum_ij u_i v_j m(y + i, x + j) modulo 2^64: separable, so the eight variants cost four row sums and
    eight column sums. The smallest of the eight names the block.
    """
    height, width = values.shape
    out_h, out_w = height - BLOCK + 1, width - BLOCK + 1
    hashes = np.zeros((out_h, out_w), np.uint64)
    variants = np.zeros((out_h, out_w), np.uint8)
    rows = np.zeros((4, BLOCK, out_w), np.uint64)  # ring of row sums: first, reversed first, second, reversed second
    mixed = np.zeros(width, np.uint64)
    changes = np.zeros((BLOCK, out_w), np.int32)  # ring of changes along a row
    changes_down = np.zeros((BLOCK, out_w), np.int32)  # ring of changes to the row above
    for y in range(height):
        slot = y % BLOCK
        for x in range(width):
            mixed[x] = _mix(values[y, x])
        for x in range(out_w):
            a = np.uint64(0)
            b = np.uint64(0)
            c = np.uint64(0)
            d = np.uint64(0)
            along = 0
            down = 0
            for j in range(BLOCK):
                m = mixed[x + j]
                a += factors[0, j] * m
                b += factors[0, BLOCK - 1 - j] * m
                c += factors[1, j] * m
                d += factors[1, BLOCK - 1 - j] * m
                if j > 0 and values[y, x + j] != values[y, x + j - 1]:
                    along += 1
                if y > 0 and values[y, x + j] != values[y - 1, x + j]:
                    down += 1
            rows[0, slot, x] = a
            rows[1, slot, x] = b
            rows[2, slot, x] = c
            rows[3, slot, x] = d
            changes[slot, x] = along
            changes_down[slot, x] = down
        if y < BLOCK - 1:
            continue
        top = y - BLOCK + 1
        for x in range(out_w):
            total = 0
            for i in range(BLOCK):
                total += changes[(top + i) % BLOCK, x]
                if i > 0:
                    total += changes_down[(top + i) % BLOCK, x]
            if total < MIN_CHANGES:
                continue
            best = np.uint64(0xFFFFFFFFFFFFFFFF)
            variant = 0
            for k in range(8):
                # Variant k of the block, hashed with (factors[0] down, factors[1] across), equals the block itself
                # hashed with the factors flipped, and exchanged for a transposition.
                total_hash = np.uint64(0)
                across = 2 if k < 4 else 0
                down_set = 0 if k < 4 else 1
                flip_down = (k >> 1) & 1 if k < 4 else k & 1
                flip_across = k & 1 if k < 4 else (k >> 1) & 1
                for i in range(BLOCK):
                    f = factors[down_set, BLOCK - 1 - i if flip_down else i]
                    total_hash += f * rows[across + flip_across, (top + i) % BLOCK, x]
                if total_hash < best:
                    best = total_hash
                    variant = k
            hashes[top, x] = best if best != 0 else np.uint64(1)
            variants[top, x] = variant
    return hashes, variants


@numba.njit(cache=True)
def _repeated(hashes: np.ndarray) -> np.ndarray:
    """Flat indices of the hashes that may occur twice: a counting table drops nearly all others before the sort."""
    flat = hashes.ravel()
    bits = 16
    while (1 << bits) < 4 * len(flat) and bits < 26:
        bits += 1
    shift = np.uint64(64 - bits)
    counts = np.zeros(1 << bits, np.uint8)
    for i in range(len(flat)):
        if flat[i] != 0:
            slot = flat[i] >> shift
            if counts[slot] < 255:
                counts[slot] += 1
    kept = 0
    for i in range(len(flat)):
        if flat[i] != 0 and counts[flat[i] >> shift] > 1:
            kept += 1
    out = np.empty(kept, np.int64)
    kept = 0
    for i in range(len(flat)):
        if flat[i] != 0 and counts[flat[i] >> shift] > 1:
            out[kept] = i
            kept += 1
    return out


def _vote_for_maps(
    hashes: np.ndarray, variants: np.ndarray, width: int, min_distance: int
) -> list[tuple[tuple[int, int, int], np.ndarray]]:
    """Maps with enough votes: ((variant, ty, tx), (n, 2) source block corners (y, x)), the strongest first."""
    candidates = _repeated(hashes)
    if len(candidates) < 2:
        return []
    keys = hashes.ravel()[candidates]
    order = np.argsort(keys, kind="stable")
    candidates, keys = candidates[order], keys[order]
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    sizes = np.diff(np.append(starts, len(keys)))
    first, second = [], []
    for step in range(1, MAX_REPEATS):
        # Pairs (i, i + step) within groups of equal hashes.
        for offset in range(MAX_REPEATS - step):
            chosen = starts[(sizes <= MAX_REPEATS) & (sizes > offset + step)] + offset
            first.append(candidates[chosen])
            second.append(candidates[chosen + step])
    p, q = np.concatenate(first), np.concatenate(second)
    if len(p) == 0:
        return []
    out_w = hashes.shape[1]
    flat_variants = variants.ravel()
    kp, kq = flat_variants[p].astype(np.int64), flat_variants[q].astype(np.int64)
    ys, xs = np.divmod(p, out_w)
    yt, xt = np.divmod(q, out_w)
    relative = _RELATIVE[kp, kq]
    # Twice the coordinates of the block centres keeps everything in integers.
    sy, sx, ty, tx = (2 * v + BLOCK - 1 for v in (ys, xs, yt, xt))
    m = _VARIANTS[relative]
    dy = ty - (m[:, 0, 0] * sy + m[:, 0, 1] * sx)
    dx = tx - (m[:, 1, 0] * sy + m[:, 1, 1] * sx)
    far = np.maximum(abs(yt - ys), abs(xt - xs)) >= min_distance
    code = ((relative << 48) + ((dy + (1 << 22)) << 24) + (dx + (1 << 22)))[far]
    ys, xs = ys[far], xs[far]
    order = np.argsort(code, kind="stable")
    code = code[order]
    starts = np.flatnonzero(np.concatenate([[True], code[1:] != code[:-1]])) if len(code) else np.zeros(0, int)
    sizes = np.diff(np.append(starts, len(code)))
    result = []
    for start, size in sorted(zip(starts, sizes, strict=True), key=lambda g: -g[1]):
        if size < MIN_BLOCKS or len(result) >= MAX_MAPS:
            break
        value = int(code[start])
        key = (value >> 48, ((value >> 24) & 0xFFFFFF) - (1 << 22), (value & 0xFFFFFF) - (1 << 22))
        members = order[start : start + size]
        result.append((key, np.stack([ys[members], xs[members]], axis=1)))
    return result


def _relative_variants() -> np.ndarray:
    """(8, 8): the variant that takes block p onto block q when p's variant a and q's variant b look the same."""
    table = np.zeros((8, 8), np.int64)
    for a in range(8):
        for b in range(8):
            matrix = np.rint(np.linalg.inv(_VARIANTS[b]) @ _VARIANTS[a]).astype(np.int64)
            table[a, b] = next(k for k in range(8) if (_VARIANTS[k] == matrix).all())
    return table


_RELATIVE = _relative_variants()


def _trace_regions(values: np.ndarray, key: tuple[int, int, int], sources: np.ndarray) -> list[ExactCopy]:
    """Regions of equal pixels around the blocks that voted for one map."""
    variant, dy, dx = key
    height, width = values.shape
    matrix = _VARIANTS[variant]
    away = np.zeros(2)
    if both_ways := _is_its_own_inverse(key):  # one of each pair of blocks has voted, now on this side, now on that
        copies = (2 * sources + BLOCK - 1) @ matrix.T + np.array([dy, dx])
        sources = np.concatenate([sources, (copies - BLOCK + 1) // 2])
        half = len(sources) // 2
        moved = (sources[half:] - sources[:half]).astype(float)
        away = np.linalg.eigh(moved.T @ moved)[1][:, 1]  # from the source to the copy, as most blocks move
    reach = 2 * FLAT_REACH
    y0, x0 = np.maximum(sources.min(axis=0) - reach, 0)
    y1, x1 = np.minimum(sources.max(axis=0) + BLOCK + reach, (height, width))
    ys, xs = np.mgrid[y0:y1, x0:x1]
    ty = (2 * (matrix[0, 0] * ys + matrix[0, 1] * xs) + dy) // 2
    tx = (2 * (matrix[1, 0] * ys + matrix[1, 1] * xs) + dx) // 2
    inside = (ty >= 0) & (ty < height) & (tx >= 0) & (tx < width)
    equal = np.zeros(ys.shape, np.uint8)
    equal[inside] = values[ys[inside], xs[inside]] == values[ty[inside], tx[inside]]
    blocks = np.zeros(ys.shape, np.uint8)
    blocks[sources[:, 0] - y0, sources[:, 1] - x0] = 1
    textured = cv2.dilate(blocks, np.ones((BLOCK, BLOCK), np.uint8), anchor=(BLOCK - 1, BLOCK - 1))
    ellipse = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * FLAT_REACH + 1, 2 * FLAT_REACH + 1))
    near = cv2.morphologyEx(
        cv2.copyMakeBorder(textured, reach, reach, reach, reach, cv2.BORDER_CONSTANT), cv2.MORPH_CLOSE, ellipse
    )
    near = near[reach:-reach, reach:-reach]
    # A lone equal pixel is chance; what a 3 x 3 square fits into is not.
    rough = _not_flat(values[y0:y1, x0:x1])
    region = cv2.morphologyEx(equal, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)) & (near | rough)
    region |= textured & equal
    # In the dark, where there are few grey levels, squares are equal by chance too.
    count, labels = cv2.connectedComponents(region, connectivity=4)
    region &= near | (np.bincount(labels.ravel(), textured.ravel(), count) > 0)[labels]
    symmetrical = np.zeros(ys.shape, bool)
    if both_ways:
        region &= away[0] * (ty - ys) + away[1] * (tx - xs) > 0
        # A gutter between two panels is symmetrical anyhow.
        here = (textured > 0) & (cv2.erode(rough, np.ones((3, 3), np.uint8)) > 0)
        symmetrical = here & (np.maximum(abs(ty - ys), abs(tx - xs)) <= MAX_GAP)
    found = []
    for mask in _parts(region):
        cover = int((textured[mask] > 0).sum())
        if mask.sum() < MIN_AREA or cover < MIN_AREA or (symmetrical & mask).any():
            continue
        density = float(blocks[mask].sum() / mask.sum())
        if density > MIN_DENSITY:
            found.append(_copy(_affine(key), cover, density, mask, (int(y0), int(x0))))
    return found


def _is_its_own_inverse(key: tuple[int, int, int]) -> bool:
    """Whether a map is a reflection or a half turn, so that it also takes the copy back to its source."""
    linear, shift = _VARIANTS[key[0]], np.array(key[1:])
    return bool((linear @ linear == np.eye(2)).all() and (linear @ shift + shift == 0).all())


def _not_flat(values: np.ndarray) -> np.ndarray:
    """1 where the 3 x 3 neighbourhood has more than one colour."""
    codes = values.astype(np.float32)  # 24 bits are exact
    square = np.ones((3, 3), np.uint8)
    return (cv2.dilate(codes, square) != cv2.erode(codes, square)).astype(np.uint8)


def _self_equal(values: np.ndarray, ys: np.ndarray, xs: np.ndarray) -> float:
    """Largest share of these pixels that equal a near pixel: smooth areas of a JPEG look alike everywhere."""
    height, width = values.shape
    own = values[ys, xs]
    return max(float((own == values[(ys + dy) % height, (xs + dx) % width]).mean()) for dy, dx in NEIGHBOURS)


def _pixels(copy: ExactCopy) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the source's pixels in the image."""
    ys, xs = np.nonzero(copy.mask)
    return ys + copy.y, xs + copy.x


def _parts(region: np.ndarray) -> list[np.ndarray]:
    """Masks (h, w) bool of one copy per neighbourhood: a content's parts are apart by flat areas, so near ones join."""
    joined = cv2.dilate(region, np.ones((2 * FLAT_REACH + 1,) * 2, np.uint8))
    count, labels = cv2.connectedComponents(joined)
    return [(region > 0) & (labels == label) for label in range(1, count)]


def _copy(
    affine: np.ndarray, covered_pixels: int, density: float, mask: np.ndarray, corner: tuple[int, int]
) -> ExactCopy:
    """Copy of a mask (h, w) whose left upper pixel is `corner` (y, x) of the image, cut to its box."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    part = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return ExactCopy(affine, covered_pixels, density, corner[1] + int(columns[0]), corner[0] + int(rows[0]), part)


def _feathered(image: np.ndarray, copy: ExactCopy) -> ExactCopy:
    """The copy with its blended edge, where it has one.

    Around pixels that are equal the difference of source and copy begins at once; where the edge was feathered it grows
    in even steps with the distance, ring by ring, until it stays what it is between strangers.
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
    depth = np.rint(cv2.distanceTransform(1 - mask, cv2.DIST_L2, 5))
    rings = [difference[inside & (depth == k)] for k in range(1, reach + 1)]
    steps = np.array([ring.mean() if len(ring) else 0.0 for ring in rings])
    widest = min(MAX_FEATHER, int(np.sqrt(copy.mask.sum()) / 5))  # what is wider than that left little that is equal
    fits = {}
    for feather in range(2, widest + 1):
        plateau = float(np.median(steps[feather : feather + 4]))
        if plateau < MIN_STEP or steps[feather] < 0.8 * plateau:
            continue
        off = steps[:feather] / plateau - np.arange(1, feather + 1) / (feather + 1)
        if off.min() > -0.15 and off.max() < 0.05:
            fits[feather] = float(np.abs(off).max())
    if not fits:
        return copy
    return _copy(copy.affine, copy.covered_pixels, copy.density, (depth <= min(fits, key=fits.get)) & inside, (y0, x0))


def _affine(key: tuple[int, int, int]) -> np.ndarray:
    """(2, 3) in (x, y) of a map in (y, x) with doubled offsets."""
    variant, dy, dx = key
    m = _VARIANTS[variant].astype(float)
    return np.array([[m[1, 1], m[1, 0], dx / 2], [m[0, 1], m[0, 0], dy / 2]])
