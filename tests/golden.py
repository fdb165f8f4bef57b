"""The golden table: findings of thirty small images, to the bit, so that a change of the code shows whether they moved.

    python -m tests.golden        makes tests/golden.json.gz anew, after a change that is meant to move them

Twenty forgeries and ten authentic cut-outs of the images that scikit-image carries, 256 px a side. Kept are the
checksum of each image (forgeries are drawn from a seed), the instance masks as run lengths with their scores, and of
twenty verified pairs the affine map and every feature.
"""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import skimage.data

from config import MatchingSettings, SynthesisSettings
from copymove.detect import detect_copies
from forgery.forge import forge
from images.read import read_image
from metrics import encode_mask

TABLE = Path(__file__).with_name("golden.json.gz")
NAMES = ("brick", "camera", "cell", "chelsea", "coffee", "coins", "grass", "gravel", "hubble_deep_field", "ihc")
PAIRS = 20


def golden_images() -> Iterator[tuple[str, np.ndarray]]:
    """Name and image (H, W, 3) uint8 of each row."""
    for name in NAMES:
        image = read_image(next(Path(skimage.data.__file__).parent.glob(f"{name}.*")))
        middle_y, middle_x = image.shape[0] // 2, image.shape[1] // 2
        crop = image[middle_y - min(middle_y, 128) : middle_y + 128, middle_x - min(middle_x, 128) : middle_x + 128]
        small = cv2.resize(image, (256, 256), interpolation=cv2.INTER_AREA)
        for k, base in enumerate((np.ascontiguousarray(crop), small)):
            rng = np.random.default_rng(100 + k)
            yield (
                f"{name} forged {k}",
                forge(base, SynthesisSettings(degrade_probability=0.4), rng, panels=[small]).image,
            )
        yield f"{name} crop", np.ascontiguousarray(crop)


def findings(image: np.ndarray) -> dict[str, Any]:
    """What the table keeps of an image; JSON types."""
    found = detect_copies(image, MatchingSettings(search_budget=600.0))
    return {
        "checksum": zlib.crc32(image),
        "instances": [{"score": i.score, "rle": encode_mask(i.mask)} for i in found.instances],
        "pairs": [
            {"affine": copy.affine.ravel().tolist(), "score": copy.score, "features": list(features.values())}
            for copy, features in zip(found.copies, found.features, strict=True)
        ],
    }


def read_table() -> dict[str, dict[str, Any]]:
    """The table as it was made: a row by the name of its image."""
    return json.loads(gzip.decompress(TABLE.read_bytes()))


def main() -> None:
    """Make the table."""
    rows, pairs = {}, 0
    for name, image in golden_images():
        rows[name] = findings(image)
        rows[name]["pairs"] = rows[name]["pairs"][: max(PAIRS - pairs, 0)]
        pairs += len(rows[name]["pairs"])
    TABLE.write_bytes(gzip.compress(json.dumps(rows).encode(), mtime=0))
    print(f"{TABLE}: {len(rows)} images, {pairs} pairs")


if __name__ == "__main__":
    main()
