"""Write the images that scikit-image and scikit-learn carry in their packages, as authentic images for a demo.

    python demo.py demo/images

Nothing is downloaded. `make demo` synthesises forgeries from them and runs the whole method.
"""

from config import DemoSettings
from runtime.command_line import parse_or_exit, run

if __name__ == "__main__":
    SETTINGS = parse_or_exit(DemoSettings)  # above the heavy imports: `--help` and mistakes answer at once

from pathlib import Path

import skimage.data
import sklearn.datasets

from runtime.files import atomic_write

NAMES = (
    "astronaut", "brick", "camera", "cell", "chelsea", "clock_motion", "coffee", "coins", "grass", "gravel",
    "hubble_deep_field", "ihc", "microaneurysms", "moon", "retina", "rocket", "text",
)  # of images in skimage/data  # fmt: skip


def main(settings: DemoSettings) -> None:
    """Copy the images into a folder."""
    packaged = Path(skimage.data.__file__).parent
    sources = [next(packaged.glob(f"{name}.*")) for name in NAMES]
    sources += sorted((Path(sklearn.datasets.__file__).parent / "images").glob("*.jpg"))
    for source in sources:
        atomic_write(settings.out / source.name, lambda temporary, s=source: temporary.write_bytes(s.read_bytes()))
    print(f"{len(sources)} images in {settings.out}")


if __name__ == "__main__":
    run(main, SETTINGS)
