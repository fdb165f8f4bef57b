"""What was found, in sentences for a reader."""

from typing import TYPE_CHECKING

from report.shapes import centroid

if TYPE_CHECKING:
    from copymove.copies import Copy, Instance


def displacement(copy: "Copy") -> tuple[float, float]:
    """How many pixels (to the right, down) the copy lies from its source, measured at the source's centroid."""
    x, y = centroid(copy.source)
    moved = copy.affine @ (x, y, 1.0)
    return float(moved[0] - x), float(moved[1] - y)


def describe_copy(copy: "Copy") -> str:
    """One sentence: where the region appears again, how it was rotated, mirrored and scaled, how well both agree."""
    right, down = (round(v) for v in displacement(copy))
    moves = [f"{abs(right):,} px to the {'right' if right > 0 else 'left'}"] if right else []
    moves += [f"{abs(down):,} px {'down' if down > 0 else 'up'}"] if down else []
    changes = [" and ".join(moves) or "in the same place"]
    degrees = round(copy.rotation)
    if copy.mirrored and abs(degrees) == 180:  # the same as left to right and half a turn, but easier to see
        changes.append("mirrored top to bottom")
    else:
        if degrees:
            direction = "" if abs(degrees) == 180 else " counter-clockwise" if degrees > 0 else " clockwise"
            unit = "degree" if abs(degrees) == 1 else "degrees"
            changes.append(f"rotated {abs(degrees)} {unit}{direction}")
        if copy.mirrored:
            changes.append("mirrored left to right")
    if abs(copy.scale - 1) >= 0.005:
        changes.append(f"scaled by {copy.scale:.2f}")
    if len(changes) == 1:
        changes.append("neither rotated nor scaled")
    area = int(copy.source.mask.sum())
    return f"This region appears again {', '.join(changes)}; correlation {copy.ncc:.2f} over {area:,} px."


def describe_unproven(instance: "Instance") -> str:
    """The sentence for an instance without copies, which only the embedding proposes."""
    return (
        f"The trained model marks {int(instance.mask.sum()):,} px here as repeated content. The search on the pixels "
        "found no aligned copy that confirms it: look closely before you rely on this finding."
    )
