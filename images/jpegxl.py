"""The header of a JPEG XL (ISO/IEC 18181-1, 18181-2): size, bits and whether it is an animation.

imagecodecs tells these only by decoding, and the size has to be known before that.
"""

from dataclasses import dataclass

CONTAINER = b"\0\0\0\x0cJXL \r\n\x87\n"
CODESTREAM = b"\xff\x0a"
# Width to height, by the number that stands for it; 0 means that the width follows.
RATIOS = ((0, 1), (1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))


@dataclass(frozen=True)
class JpegXlHeader:
    """What the header says."""

    height: int  # pixels, before the orientation is applied
    width: int
    bits: int | None  # of a sample; None for floats
    animated: bool


class _Bits:
    """Bits of a codestream, the lowest of each byte first."""

    def __init__(self, data: bytes) -> None:
        self.value, self.left = int.from_bytes(data, "little"), 8 * len(data)

    def take(self, count: int) -> int:
        """The next bits as a number. Raises ValueError behind the end."""
        if count > self.left:
            raise ValueError("the JPEG XL is cut off")
        taken, self.value, self.left = self.value & ((1 << count) - 1), self.value >> count, self.left - count
        return taken

    def choose(self, *choices: tuple[int, int]) -> int:
        """A number in one of four forms: what is added, and how many bits follow."""
        offset, count = choices[self.take(2)]
        return offset + self.take(count)


def read_jpegxl_header(data: bytes) -> JpegXlHeader:
    """Read the header of a file.

    Raises:
        ValueError: it is no JPEG XL, or cut off.
    """
    codestream = _codestream(data)
    if not codestream.startswith(CODESTREAM):
        raise ValueError("it is not a JPEG XL")
    bits = _Bits(codestream[2:66])
    height, width = _size(bits)
    if bits.take(1):  # all as usual
        return JpegXlHeader(height, width, 8, False)
    animated = False
    if bits.take(1):  # further fields
        bits.take(3)  # orientation, which the decoder applies
        if bits.take(1):
            _size(bits)  # intended for display
        if bits.take(1):
            raise ValueError("a JPEG XL with a preview is not read")
        animated = bool(bits.take(1))
        if animated:
            bits.choose((100, 0), (1000, 0), (1, 10), (1, 30))  # ticks
            bits.choose((1, 0), (1001, 0), (1, 8), (1, 10))
            bits.choose((0, 0), (0, 3), (0, 16), (0, 32))  # loops
            bits.take(1)  # time codes
    if bits.take(1):
        return JpegXlHeader(height, width, None, animated)
    return JpegXlHeader(height, width, bits.choose((8, 0), (10, 0), (12, 0), (1, 6)), animated)


def _size(bits: _Bits) -> tuple[int, int]:
    """Height and width."""
    small = bits.take(1)

    def side() -> int:
        return 8 * (bits.take(5) + 1) if small else bits.choose((1, 9), (1, 13), (1, 18), (1, 30))

    height = side()
    across, down = RATIOS[bits.take(3)]
    return height, (height * across // down if across else side())


def _codestream(data: bytes) -> bytes:
    """The codestream, or its first part, out of the boxes of a container."""
    if not data.startswith(CONTAINER):
        return data
    start = 0
    while start + 8 <= len(data):
        size, kind, head = int.from_bytes(data[start : start + 4], "big"), data[start + 4 : start + 8], 8
        if size == 1:
            size, head = int.from_bytes(data[start + 8 : start + 16], "big"), 16
        size = size or len(data) - start
        if kind in (b"jxlc", b"jxlp"):
            return data[start + head + (4 if kind == b"jxlp" else 0) : start + size]
        if size < head:
            break
        start += size
    return b""
