"""Write the pictures that scikit-image and scikit-learn carry in their packages, as authentic pictures for a demo.

    python demo.py demo/pictures

Nothing is downloaded. `make demo` synthesises forgeries from them and runs the whole method.
"""

import sys
from pathlib import Path

NAMES = [
    "astronaut",
    "brick",
    "camera",
    "cell",
    "chelsea",
    "clock_motion",
    "coffee",
    "coins",
    "grass",
    "gravel",
    "hubble_deep_field",
    "ihc",
    "microaneurysms",
    "moon",
    "retina",
    "rocket",
    "text",
]


def write_pictures(out: Path) -> int:
    """Copy the pictures into a folder; returns their number."""
    import skimage.data
    import sklearn.datasets

    import config

    packaged = Path(skimage.data.__file__).parent
    sources = [next(packaged.glob(f"{name}.*")) for name in NAMES]
    sources += sorted((Path(sklearn.datasets.__file__).parent / "images").glob("*.jpg"))
    for source in sources:
        config.write_whole(out / source.name, lambda temporary, s=source: temporary.write_bytes(s.read_bytes()))
    return len(sources)


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    print(f"{write_pictures(Path(sys.argv[1]))} pictures in {sys.argv[1]}")
