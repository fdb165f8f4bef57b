"""`FrameInfo`: what the header of a file says about one of its images; and the limits on the size of an image."""

from dataclasses import dataclass
from pathlib import Path

from runtime.errors import InputError

# Allowed size of the decoded image per pixel of the limit: 4 bytes, that is 8 bit with alpha. Deeper images of as many
# bytes have fewer pixels.
BYTES_PER_PIXEL = 4


@dataclass(frozen=True)
class FrameInfo:
    """One image of a file."""

    height: int  # pixels
    width: int
    pixel_bytes: int  # of a decoded pixel
    part: str | None = None  # which one it is, as `ImageSource.part`; None where it is the only one
    caption: str | None = None  # the name of its channel
    left_out: str | None = None  # why it is not examined, where it is not


def check_frame_size(path: Path, info: FrameInfo, max_megapixels: float) -> None:
    """Raise InputError where an image takes too much memory."""
    check_size(path, (info.height, info.width), info.pixel_bytes, 0, max_megapixels)


def check_size(path: Path, shape: tuple[int, int], pixel_bytes: int, file_bytes: int, max_megapixels: float) -> None:
    """Refuse what would take too much memory: too many pixels, too many bytes when decoded, or too large a file."""
    (height, width), limit = shape, f"the limit is {max_megapixels:g} (--max-megapixels)"
    if height * width > max_megapixels * 1e6:
        raise InputError(f"{path} is {width} x {height} px, {height * width / 1e6:.3g} megapixels; {limit}")
    decoded_limit = max_megapixels * 1e6 * BYTES_PER_PIXEL  # bytes
    if height * width * pixel_bytes > decoded_limit:
        raise InputError(
            f"{path} is {width} x {height} px of {pixel_bytes} bytes, which count as "
            f"{height * width * pixel_bytes / BYTES_PER_PIXEL / 1e6:.3g} megapixels; {limit}"
        )
    if file_bytes > 2 * decoded_limit:
        raise InputError(f"{path} has {file_bytes / 1e9:.3g} GB, far more than an image of the limit takes; {limit}")
