"""Findings in sentences."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass
from copymove.copies import Copy, Instance
from report.shapes import centroid


def displacement(copy: "Copy") -> tuple[float, float]:
    """Way (right, down) in pixels from the middle of the source to the middle of its copy."""
    x, y = centroid(copy.source)
    moved = copy.affine @ (x, y, 1.0)
    return float(moved[0] - x), float(moved[1] - y)


def describe_copy(copy: "Copy") -> str:
    """One sentence: where the region appears again, how it was turned and resized, how alike both are."""
    right, down = (round(v) for v in displacement(copy))
    ways = [f"{abs(right):,} px to the {'right' if right > 0 else 'left'}"] if right else []
    ways += [f"{abs(down):,} px {'down' if down > 0 else 'up'}"] if down else []
    changes = [" and ".join(ways) or "in the same place"]
    turn = round(copy.rotation)
    if copy.mirrored and abs(turn) == 180:  # the same map, said in the way that people see it
        changes.append("mirrored top to bottom")
    else:
        if turn:
            sense = "" if abs(turn) == 180 else " counter-clockwise" if turn > 0 else " clockwise"
            changes.append(f"rotated {abs(turn)} {'degree' if abs(turn) == 1 else 'degrees'}{sense}")
        if copy.mirrored:
            changes.append("mirrored left to right")
    if abs(copy.scale - 1) >= 0.005:
        changes.append(f"scaled {copy.scale:.2f}")
    if len(changes) == 1:
        changes.append("neither rotated nor scaled")
    area = int(copy.source.mask.sum())
    return f"This region appears again {', '.join(changes)}; correlation {copy.correlation:.2f} over {area:,} px."


def describe_unproven(instance: "Instance") -> str:
    """The sentence for an instance that the embedding alone proposes."""
    return (
        f"The trained model marks {int(instance.mask.sum()):,} px here as repeated content; "
        "no aligned copy was found on the pixels, so look closely before you rely on it."
    )
