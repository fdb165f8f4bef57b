"""Repeats in an image that are much weaker than its best copy are taken out."""

import math
from collections.abc import Sequence

from copymove.copies import Copy, VerifiedCopy, copy_on_jpeg_grid, is_upright, share_content
from copymove.scoring import is_near_exact

# Least share of the best copy's grain correlation and fine margin that another copy in the image must have:
BESIDE = 0.7  # usually
BESIDE_SAME = 0.4  # where it is a further copy of the best one's content
BESIDE_TURNED = 0.3  # where it was rotated by no right angle, or resized, which costs some of the grain
# Logarithm of how much more than the best copy, as a factor, another one may differ from its source (exp(1.2) is 3.3).
BESIDE_RESIDUAL = 1.2
# Grey levels by which an altered copy may differ from its source where the best one is bit-identical: upright, rotated.
ALTERED_RESIDUAL = (1.0, 2.0)
IDENTICAL_GRAIN = math.atanh(0.99)  # the feature `grain_ncc_p80` of a bit-identical copy


def suppress_repeats(verified: Sequence[VerifiedCopy]) -> list[VerifiedCopy]:
    """Those of the accepted copies, best first, that are not merely repeats.

    After the paste an image was processed as a whole, so all of its copies suffered alike. A pair that shares much less
    of its grain than the best copy does, or has a much smaller margin, or differs much more, merely repeats: windows,
    roof tiles, goods on a shelf. These are the exceptions:

    - A copy that was rotated or resized lost some of its grain by that, and may share less of it.
    - Beside bit-identical copies nothing was done to the image after the paste. There a copy may share less grain only
      where it hardly differs otherwise (it was blended or recoloured), or where it is a rotated one of their content.
    - A copy that lies on the grid of JPEG blocks as its source does was rounded in the same way as its source. It
      is no measure for the others, and is not measured itself.
    """
    measures = [v for v in verified if not copy_on_jpeg_grid(v.copy)]
    if not measures:
        return list(verified)
    first = verified[0].copy  # its content is proven best, whether it lies on the grid or not
    best = next((v for v in measures if share_content(v.copy, first)), measures[0])
    if best.copy.kind == "exact":
        exact = [v.copy for v in measures if v.copy.kind == "exact"]
        return [v for v in verified if _is_identical(v) or _fits_beside_exact(v, exact)]
    return [v for v in verified if _is_identical(v) or copy_on_jpeg_grid(v.copy) or _fits_beside(v, best)]


def _is_identical(verified: VerifiedCopy) -> bool:
    return verified.copy.kind == "exact" or is_near_exact(verified.features)


def _fits_beside_exact(verified: VerifiedCopy, exact: Sequence[Copy]) -> bool:
    """Whether a copy is good enough where the best copies of the image are bit-identical."""
    features, rotated = verified.features, not is_upright(verified.copy)
    log_residual = features["residual"] + features["noise"]  # in grey levels; the feature is in units of the noise
    hardly_differs = log_residual < math.log(ALTERED_RESIDUAL[rotated])
    same_content = any(share_content(verified.copy, other) for other in exact)
    share = BESIDE_TURNED if hardly_differs or (same_content and rotated) else BESIDE
    return features["grain_ncc_p80"] >= share * IDENTICAL_GRAIN


def _fits_beside(verified: VerifiedCopy, best: VerifiedCopy) -> bool:
    """Whether a copy is good enough beside the best one, which is not bit-identical."""
    share = BESIDE_SAME if share_content(verified.copy, best.copy) else BESIDE
    if not is_upright(verified.copy):
        share = BESIDE_TURNED
    return verified.features["residual"] <= best.features["residual"] + BESIDE_RESIDUAL and all(
        verified.features[name] >= share * best.features[name] for name in ("grain_ncc_p80", "fine_margin")
    )
