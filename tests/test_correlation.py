"""Correlations of an image with itself, against loops over cells, windows and neighbours."""

import math
import statistics

import cv2
import numpy as np
import pytest
import torch
from scipy.fft import dctn
from torch.nn import functional as F

import correlation
from model import to_pixels


def loop_correlation(tokens, valid, k, exclusion):
    """`self_correlation` of one image by loops: tokens (H, W, D), valid (H, W)."""
    height, width = valid.shape
    cells = [(r, c) for r in range(height) for c in range(width)]
    z = {cell: F.normalize(tokens[cell].double(), dim=0) for cell in cells}

    def far(a, b):
        return max(abs(a[0] - b[0]), abs(a[1] - b[1])) > exclusion

    similar = {a: {b: float(z[a] @ z[b]) for b in cells if far(a, b) and valid[b]} for a in cells}
    best = {a: sorted(similar[a], key=lambda b, a=a: -similar[a][b])[:k] for a in cells}
    support = {}
    for a in cells:
        for b in best[a]:
            near = wide = shift = 0
            for dy in range(-2, 3):
                for dx in range(-2, 3):
                    j = (a[0] + dy, a[1] + dx)
                    if (dy, dx) == (0, 0) or j not in best or not valid[j]:
                        continue
                    d = [math.hypot(m[0] - b[0], m[1] - b[1]) / math.hypot(dy, dx) for m in best[j]]
                    agrees = any(0.4 <= value <= 2.2 for value in d)
                    wide += agrees
                    near += agrees and max(abs(dy), abs(dx)) == 1
                    shift += any(max(abs(m[0] - b[0] - dy), abs(m[1] - b[1] - dx)) <= 1 for m in best[j])
            support[a, b] = (near / 8, wide / 24, shift / 24)
    match = {a: max(best[a], key=lambda b, a=a: similar[a][b] + support[a, b][1]) for a in cells if valid[a]}
    offset = {a: (match[a][0] - a[0], match[a][1] - a[1]) for a in match}

    def score(values):
        spread = max(0.02, statistics.pstdev(values.values()))
        return {a: (value - statistics.fmean(values.values())) / spread for a, value in values.items()}

    likeness = score({a: similar[a][match[a]] for a in match})
    agreement = score({a: support[a, match[a]][1] for a in match})
    measures = torch.zeros(height, width, k + 11, dtype=torch.float64)
    for a in match:
        back = match[match[a]]
        votes = sum(max(abs(offset[a][0] - o[0]), abs(offset[a][1] - o[1])) <= 1 for o in offset.values())
        measures[a] = torch.tensor([
            *(similar[a][b] for b in best[a]), statistics.fmean(similar[a].values()), similar[a][match[a]],
            likeness[a], agreement[a], *support[a, match[a]],
            math.exp(-((back[0] - a[0]) ** 2 + (back[1] - a[1]) ** 2) / 8), math.log(1 + votes),
            offset[a][0] / height, offset[a][1] / width,
        ])  # fmt: skip
    return measures, match


@pytest.mark.parametrize("padded", [False, True])
def test_self_correlation_equals_the_loop(padded):
    """Every measure against loops over cells, with and without padding, in a grid with a plain copy of 3 x 3 cells."""
    generator = torch.Generator().manual_seed(4)
    tokens = torch.randn(1, 9, 11, 12, generator=generator)
    tokens[0, 6:9, 1:4] = tokens[0, 0:3, 7:10] + 0.1 * torch.randn(3, 3, 12, generator=generator)
    valid = torch.ones(1, 9, 11, dtype=torch.bool)
    if padded:
        valid[0, :, 9:] = False
    measures, match = correlation.self_correlation(tokens, valid, neighbours=3, exclusion=2)
    expected, cells = loop_correlation(tokens[0], valid[0], 3, 2)
    assert torch.allclose(measures[0].double(), expected, atol=1e-5)
    assert {a: divmod(int(match[0][a]), 11) for a in cells} == cells
    if not padded:
        assert cells[1, 8] == (7, 2) and measures[0, 1, 8, 3 + 6] == 8 / 24  # a shift: the other 8 of the 3 x 3 agree


def test_batch_and_padding_change_nothing():
    """An image's measures are the same alone and in a batch, whatever its padding cells hold."""
    tokens = torch.randn(2, 9, 9, 8, generator=torch.Generator().manual_seed(0))
    valid = torch.ones(2, 9, 9, dtype=torch.bool)
    valid[1, 5:] = False
    both, _ = correlation.self_correlation(tokens, valid, 4, 2)
    alone, _ = correlation.self_correlation(tokens[1:], valid[1:], 4, 2)
    assert torch.equal(both[1], alone[0]) and (both[1, 5:] == 0).all()
    changed = tokens.clone()
    changed[1, 5:] = 7.0
    assert torch.equal(correlation.self_correlation(changed, valid, 4, 2)[0][1], both[1])
    valid[1] = False
    valid[1, 0, 0] = True  # a single cell has no match at all
    assert torch.isfinite(correlation.self_correlation(tokens, valid, 4, 2)[0]).all()


def test_self_correlation_of_plain_copy():
    """Four cells that stand twice are each other's match, with similarity 1."""
    tokens = torch.zeros(1, 8, 8, 128)
    tokens[0] = torch.eye(128)[:64].view(8, 8, 128)  # all cells differ
    tokens[0, 0:2, 0:2] = tokens[0, 5:7, 5:7] = torch.eye(128)[64:68].view(2, 2, 128)
    measures, match = correlation.self_correlation(tokens, torch.ones(1, 8, 8, dtype=torch.bool), 3, 2)
    assert match[0, 0, 0] == 5 * 8 + 5 and match[0, 6, 6] == 8 + 1
    assert measures[0, 0, 0, 0] == 1 and measures[0, 3, 3, 0] == 0
    assert measures[0, 0, 0, 3 + 7] == 1  # the match's match is the cell


def test_no_distant_cells_is_an_error():
    """A grid of 4 x 4 cells has too few outside of a neighbourhood."""
    with pytest.raises(ValueError, match="has no 3 cells"):
        correlation.self_correlation(torch.ones(1, 4, 4, 8), torch.ones(1, 4, 4, dtype=torch.bool), 3, 2)


# Patches --------------------------------------------------------------------------------------------------------

ORIENTATIONS = [(transpose, r, c) for transpose in (False, True) for r in (1, -1) for c in (1, -1)]


def oriented(patch, transpose, r, c):
    """A patch with its rows and columns flipped, then transposed."""
    patch = patch[::r, ::c]
    return patch.swapaxes(0, 1) if transpose else patch


def texture(size, seed=0, sigma=2.5):
    noise = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), sigma), None, 0, 255, cv2.NORM_MINMAX)


def describe(window):
    waves = dctn(window, norm="ortho")
    values = np.array([waves[u, v] for u in range(7) for v in range(7) if 1 <= u + v <= 6])
    return values / math.sqrt(float(values @ values) + (2.0 * 20) ** 2), float(np.linalg.norm(values)) / 20


def loop_patches(image, valid, exclusion):
    """Best window (similarity, corner) of each cell and orientation, and its support by 24 and by 8 neighbours."""
    grid = len(valid)
    grey = np.pad((image.astype(np.float64) - [123.675, 116.28, 103.53]).mean(2), 3, mode="edge")
    corners = [(y, x) for y in range(0, len(grey) - 19, 3) for x in range(0, len(grey) - 19, 3)]
    corners = [(y, x) for y, x in corners if valid[min(y // 14, grid - 1), min(x // 14, grid - 1)]]
    described = {(y, x): describe(grey[y : y + 20, x : x + 20]) for y, x in corners}
    corners = [corner for corner in corners if described[corner][1] >= 1]  # the others are smooth
    windows = np.array([described[corner][0] for corner in corners])
    best = {}
    for cell in np.argwhere(valid).tolist():
        y, x = cell[0] * 14, cell[1] * 14
        far = np.array([max(abs(a - y), abs(b - x)) > 14 * exclusion for a, b in corners])
        for k, orientation in enumerate(ORIENTATIONS):
            code, deviation = describe(oriented(grey[y : y + 20, x : x + 20], *orientation))
            products = np.where(far, windows @ code, -1)
            if deviation >= 1 and products.max() > 0:
                best[(k, *cell)] = float(products.max()), corners[int(products.argmax())]
    support = {}
    for (k, i, j), (_, (y, x)) in best.items():
        transpose, r, c = ORIENTATIONS[k]
        agree = []
        for dy in range(-2, 3):
            for dx in range(-2, 3):
                if (k, i + dy, j + dx) in best and (dy, dx) != (0, 0):
                    # In a flipped copy a step goes in the opposite direction, in a transposed one along the other axis.
                    step = (c * dx, r * dy) if transpose else (r * dy, c * dx)
                    there = best[k, i + dy, j + dx][1]
                    if max(abs(there[0] - y - 14 * step[0]), abs(there[1] - x - 14 * step[1])) <= 5:
                        agree.append(max(abs(dy), abs(dx)))
        support[k, i, j] = len(agree) / 24, agree.count(1) / 8
    return best, support


def test_patch_correlation_equals_the_loop():
    """Similarity, support and place of each cell's match against loops over windows."""
    image = texture(112, sigma=2)
    image[70:112, 65:107] = image[3:45, 2:44]
    image[90:, :40] = 128  # without structure: no window of its own
    valid = np.ones((8, 8), bool)
    valid[:, 7] = False
    measures, match = correlation.patch_correlation(
        to_pixels(torch.from_numpy(image[None])), torch.from_numpy(valid[None]), 2
    )
    best, support = loop_patches(image, valid, 2)
    for i, j in np.ndindex(8, 8):
        possible = [k for k in range(8) if (k, i, j) in best]
        got = measures[0, i, j].tolist()
        if not possible:
            assert got[:9] == pytest.approx([0, 0, 0, 0, 0, got[5], got[6], 0, 0], abs=1e-6)
            continue
        k = max(possible, key=lambda k: best[k, i, j][0] + support[k, i, j][0])
        similarity, (y, x) = best[k, i, j]
        others = max((best[o, i, j][0] for o in possible if o != k), default=0)
        assert got[:5] == pytest.approx(
            [similarity, others, best.get((0, i, j), (0,))[0], support[k, i, j][1], support[k, i, j][0]], abs=1e-4
        )
        assert got[10:] == pytest.approx([float(k == 0), (y - 14 * i) / 112, (x - 14 * j) / 112], abs=1e-6)
        assert int(match[0, i, j]) == min((y + 7) // 14, 7) * 8 + min((x + 7) // 14, 7)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_oriented_copies_are_found_whole(orientation):
    """70 px of texture, 195 rows and 241 columns away (no multiple of 14), in each orientation, brighter, flatter."""
    image = texture(322).astype(np.float64)
    image[205:275, 236:306] = 0.7 * oriented(image[10:80, 15:85], *orientation) + 40
    image = image.clip(0, 255).astype(np.uint8)
    measures, match = correlation.patch_correlation(
        to_pixels(torch.from_numpy(image[None])), torch.ones(1, 23, 23, dtype=torch.bool), 2
    )
    source, background = measures[0, 2:5, 2:5], measures[0, 8:13, 3:13]
    assert source[..., 4].min() > 0.3 > 0.1 > background[..., 4].max()  # support
    assert source[..., 7].min() > 0.8  # there and back
    # 25 cells have a match there; votes count those of source and copy with the same shift.
    assert source[..., 8].min() > math.log(8) and background[..., 8].mean() < math.log(4)
    y, x = (4 * 14 + 7 - 45) / 35, (4 * 14 + 7 - 50) / 35  # of cell (4, 4) from the source's middle, -1 to 1
    transpose, r, c = orientation
    to_y, to_x = (c * x, r * y) if transpose else (r * y, c * x)
    expected = int((240 + 35 * to_y) / 14) * 23 + int((271 + 35 * to_x) / 14)
    row, column = divmod(int(match[0, 4, 4]), 23)
    assert max(abs(row - expected // 23), abs(column - expected % 23)) <= 1


def test_smooth_images_have_no_match():
    """A constant image, and one with a single cell, give zeros and no invalid index."""
    valid = torch.zeros(2, 8, 8, dtype=torch.bool)
    valid[0], valid[1, 0, 0] = True, True
    images = np.stack([np.full((112, 112, 3), 90, np.uint8), texture(112)])
    measures, match = correlation.patch_correlation(to_pixels(torch.from_numpy(images)), valid, 2)
    assert torch.isfinite(measures).all() and (match >= 0).all() and (match < 64).all()
    assert (measures[..., [0, 3, 4, 7, 8]] == 0).all()
    assert (measures[1][~valid[1]] == 0).all()
