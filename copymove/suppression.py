"""Repeats that stand beside a better proven copy, taken out."""

import math
from collections.abc import Sequence

from copymove.copies import Copy, copy_on_jpeg_grid, is_upright, share_content
from copymove.exactness import NEAR_EXACT

BESIDE = 0.7  # share of the best copy's grain and margin that another copy in the image needs


BESIDE_SAME = 0.4  # the same for a further copy of the best one's content


BESIDE_TURNED = 0.3  # the same for a copy that was turned or resized


BESIDE_RESIDUAL = 1.2  # log of how many times as much as the best copy another one may differ from its source


# Grey levels by which an altered copy, upright or turned, may differ from its source beside bit-identical ones.
ALTERED_RESIDUAL = (1.0, 2.0)


IDENTICAL_GRAIN = math.atanh(0.99)  # of bit-identical copies, as `features` would see it


def suppress_repeats(kept: Sequence[int], copies: Sequence[Copy], features: Sequence[dict[str, float]]) -> list[int]:
    """Of these copies, best first, those that may stand beside the best one.

    After the paste an image was processed as a whole: what shares much less of its grain than the best copy does, or
    leads less at its place, or differs much more, merely repeats (windows, roof tiles, goods on a shelf). A copy that
    was turned or resized has lost some of its grain by that, and may share less. Beside bit-identical copies
    nothing was done since: only one may that hardly differs otherwise (blended, recoloured), or one of their content
    that was turned. A copy that lies on the grid of JPEG blocks as its source does was rounded like it, and tells
    nothing of the others.
    """
    measures = [k for k in kept if not copy_on_jpeg_grid(copies[k])]
    if not measures:
        return list(kept)
    first = copies[kept[0]]  # on the grid or not, its content is proven best
    best = next((k for k in measures if share_content(copies[k], first)), measures[0])
    exact_ones = [copies[k] for k in measures if copies[k].kind == "exact"]

    def fits(k: int) -> bool:
        copy, seen = copies[k], features[k]
        if copy.kind == "exact" or is_near_exact(seen):
            return True
        if copies[best].kind == "exact":
            known = any(share_content(copy, other) for other in exact_ones)
            differs = math.exp(seen["residual"] + seen["noise"])
            may_differ = differs < ALTERED_RESIDUAL[not is_upright(copy)] or (known and not is_upright(copy))
            return seen["grain_ncc_p80"] >= (BESIDE_TURNED if may_differ else BESIDE) * IDENTICAL_GRAIN
        if copy_on_jpeg_grid(copy):
            return True
        least = BESIDE_SAME if share_content(copy, copies[best]) else BESIDE
        if not is_upright(copy):
            least = BESIDE_TURNED
        shares = features[best]
        return seen["residual"] <= shares["residual"] + BESIDE_RESIDUAL and all(
            seen[name] >= least * shares[name] for name in ("grain_ncc_p80", "fine_margin")
        )

    return [k for k in kept if fits(k)]


def is_near_exact(features: dict[str, float]) -> bool:
    return features.get("exactness", 0.0) > NEAR_EXACT
