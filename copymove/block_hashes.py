"""Hashes of all blocks of an image that are the same for a block and its rotated and mirrored variants, compiled.

Variant k of a block is the sum of three bits, as an orientation in `dihedral`: 4 transposes it, then 2 flips it upside
down, then 1 flips it left to right.
"""

import numba
import numpy as np

BLOCK = 6  # side of a block in pixels
MIN_CHANGES = 16  # of the 60 pairs of neighbouring pixels in a block, how many must differ: flat blocks prove nothing

# (8, 2, 2) int64: matrices that take a place (y, x) of the block, from its centre, to its place in variant k.
VARIANTS = np.array(
    [
        (
            np.array([[-1 if k & 2 else 1, 0], [0, -1 if k & 1 else 1]])
            @ (np.array([[0, 1], [1, 0]]) if k & 4 else np.eye(2))
        )
        for k in range(8)
    ]
).astype(np.int64)


def relative_variants() -> np.ndarray:
    """(8, 8) int64: the variant that takes block p onto block q when p's variant a and q's variant b look the same."""
    table = np.zeros((8, 8), np.int64)
    for a in range(8):
        for b in range(8):
            matrix = np.rint(np.linalg.inv(VARIANTS[b]) @ VARIANTS[a]).astype(np.int64)
            table[a, b] = next(k for k in range(8) if (VARIANTS[k] == matrix).all())
    return table


def pixel_codes(image: np.ndarray) -> np.ndarray:
    """Colours of an image (H, W, 3) uint8 as one uint32 for each pixel."""
    wide = np.ascontiguousarray(image).astype(np.uint32)
    return (wide[..., 0] << 16) | (wide[..., 1] << 8) | wide[..., 2]


def hash_blocks(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hash of the block at every pixel, and its variant that has this hash.

    With mixed colours m, the hash of variant k is sum_ij u_i v_j m_k(y + i, x + j) modulo 2^64. That is separable, so
    the eight variants of all blocks cost four sums over rows and eight over columns. The smallest of the eight hashes
    is the block's hash.

    Args:
        codes: (H, W) uint32, as `pixel_codes` returns them.
    Returns:
        Hashes (H - 5, W - 5) uint64, 0 where a block is flat, and variants (H - 5, W - 5) uint8.
    """
    rng = np.random.default_rng(20120601)
    factors = rng.integers(1, 2**63, (2, BLOCK), dtype=np.uint64) | np.uint64(1)  # odd: u for the rows, v for columns
    return _hash_blocks(codes, factors)


def repeated_hashes(hashes: np.ndarray) -> np.ndarray:
    """Flat indices (n,) int64 of the hashes that may occur twice, with few others among them."""
    return _repeated_hashes(hashes.ravel())


@numba.njit(cache=True)
def _mix(code: int) -> int:
    """splitmix64 (Steele et al. 2014): spreads a colour over 64 bits, so that sums of products do not collide."""
    z = np.uint64(code) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@numba.njit(cache=True)
def _hash_blocks(codes: np.ndarray, factors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    height, width = codes.shape
    out_h, out_w = height - BLOCK + 1, width - BLOCK + 1
    hashes = np.zeros((out_h, out_w), np.uint64)
    variants = np.zeros((out_h, out_w), np.uint8)
    # Of the last BLOCK rows: sums with the factors u, u reversed, v, v reversed; and changes along and down the row.
    sums = np.zeros((4, BLOCK, out_w), np.uint64)
    changes = np.zeros((2, BLOCK, out_w), np.int32)
    mixed = np.zeros(width, np.uint64)
    for y in range(height):
        for x in range(width):
            mixed[x] = _mix(codes[y, x])
        _sum_row(codes, y, mixed, factors, sums, changes)
        top = y - BLOCK + 1
        if top >= 0:
            _hash_row(top, factors, sums, changes, hashes[top], variants[top])
    return hashes, variants


@numba.njit(cache=True)
def _sum_row(
    codes: np.ndarray, y: int, mixed: np.ndarray, factors: np.ndarray, sums: np.ndarray, changes: np.ndarray
) -> None:
    """Write the sums and the changes of one row of pixels into its slot of `sums` and `changes`."""
    slot = y % BLOCK
    for x in range(sums.shape[2]):
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
            if j > 0 and codes[y, x + j] != codes[y, x + j - 1]:
                along += 1
            if y > 0 and codes[y, x + j] != codes[y - 1, x + j]:
                down += 1
        sums[0, slot, x] = a
        sums[1, slot, x] = b
        sums[2, slot, x] = c
        sums[3, slot, x] = d
        changes[0, slot, x] = along
        changes[1, slot, x] = down


@numba.njit(cache=True)
def _hash_row(
    top: int, factors: np.ndarray, sums: np.ndarray, changes: np.ndarray, hashes: np.ndarray, variants: np.ndarray
) -> None:
    """Write hash and variant of the blocks whose upper row is `top` into one row of `hashes` and `variants`."""
    for x in range(len(hashes)):
        changed = 0
        for i in range(BLOCK):
            changed += changes[0, (top + i) % BLOCK, x]
            if i > 0:
                changed += changes[1, (top + i) % BLOCK, x]
        if changed < MIN_CHANGES:
            continue
        best = np.uint64(0xFFFFFFFFFFFFFFFF)
        variant = 0
        for k in range(8):
            # Instead of the block, the factors are flipped, and exchanged for a transposed variant.
            total = np.uint64(0)
            across = 2 if k < 4 else 0
            down = 0 if k < 4 else 1
            flip_down = (k >> 1) & 1 if k < 4 else k & 1
            flip_across = k & 1 if k < 4 else (k >> 1) & 1
            for i in range(BLOCK):
                factor = factors[down, BLOCK - 1 - i if flip_down else i]
                total += factor * sums[across + flip_across, (top + i) % BLOCK, x]
            if total < best:
                best = total
                variant = k
        hashes[x] = best if best != 0 else np.uint64(1)
        variants[x] = variant


@numba.njit(cache=True)
def _repeated_hashes(flat: np.ndarray) -> np.ndarray:
    """A table that counts hashes by their first bits drops nearly all others, before the remaining ones are sorted."""
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
