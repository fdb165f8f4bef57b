"""`Raster`: an image as its file holds it, and how it becomes what a reader sees."""

from dataclasses import dataclass, replace

import numpy as np

from images.depth import FULL_RANGE, Intensity, map_to_8_bit, row_blocks, to_8_bit


@dataclass(frozen=True)
class Raster:
    """Decoded pixels, upright, not yet of 8 bit."""

    values: np.ndarray  # (H, W) grey or indices, or (H, W, 3) RGB; any numbers
    alpha: np.ndarray | None = None  # (H, W) of the same type: 0 transparent, the largest value of its bits opaque
    premultiplied: bool = False  # the colours are multiplied by alpha already
    bits: int | None = None  # of an unsigned integer, where fewer than its type has
    white_is_zero: bool = False
    palette: np.ndarray | None = None  # (N, 3) uint8 RGB: the values are indices into it
    window: Intensity | None = None  # the range that the file itself says is shown

    def to_rgb(self) -> tuple[np.ndarray, Intensity | None]:
        """(H, W, 3) uint8 RGB as it is shown, over white; and how the values were mapped, where they had over 8 bits.

        Raises:
            ValueError: an index is outside of the palette.
        """
        if self.palette is not None:
            return self._coloured(), None
        shown, intensity = self._in_8_bit()
        if self.white_is_zero:
            shown = 255 - shown
        if shown.ndim == 2:
            shown = np.repeat(shown[..., None], 3, axis=2)
        if self.alpha is not None:
            shown = _over_white(shown, self._opacity(), self.premultiplied)
        return np.ascontiguousarray(shown), intensity

    def labels(self) -> np.ndarray:
        """(H, W) or (H, W, 3) as they are numbered, for masks: white-is-zero is turned round, palettes are ignored."""
        values = self.values
        if self.white_is_zero and values.dtype.kind in "bu":
            values = ~values if values.dtype == bool else (2 ** (self.bits or 8 * values.dtype.itemsize) - 1) - values
        return values.view(np.uint8) if values.dtype == bool else values

    def _coloured(self) -> np.ndarray:
        if int(self.values.max()) >= len(self.palette):
            raise ValueError(f"it has no colour {int(self.values.max())}; its palette has {len(self.palette)}")
        return self.palette[self.values]

    def _in_8_bit(self) -> tuple[np.ndarray, Intensity | None]:
        if self.window is not None:
            return map_to_8_bit(self.values, self.window), self.window
        if self.alpha is not None and self.values.dtype.kind == "u" and self.values.dtype != np.uint8:
            # Colours that were multiplied by alpha say nothing of the range of the colours.
            largest = 2.0 ** (self.bits or 8 * self.values.dtype.itemsize) - 1
            intensity = Intensity(0, largest, FULL_RANGE, self.values.dtype.name)
            return map_to_8_bit(self.values, intensity), intensity
        return to_8_bit(self.values, self.bits)

    def _opacity(self) -> np.ndarray:
        """(H, W) uint8: 0 transparent, 255 opaque."""
        if self.alpha.dtype.kind == "f":
            return map_to_8_bit(self.alpha, Intensity(0, 1, FULL_RANGE, self.alpha.dtype.name))
        full = replace(self, values=self.alpha, alpha=np.empty(0), window=None)
        return full._in_8_bit()[0]


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Apply an EXIF orientation, 1 to 8: transposed from 5 on, then mirrored (EXIF 2.3, tag 0x0112)."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _over_white(rgb: np.ndarray, alpha: np.ndarray, premultiplied: bool) -> np.ndarray:
    """(H, W, 3) uint8 with alpha (H, W) uint8 over white; `premultiplied`: the colours are multiplied by alpha."""
    result = np.empty(rgb.shape, np.uint8)
    for rows in row_blocks(rgb):
        colour, opacity = rgb[rows].astype(np.uint16), alpha[rows, :, None].astype(np.uint16)
        opaque = colour if premultiplied else (colour * opacity + 127) // 255
        result[rows] = np.minimum(opaque + (255 - opacity), 255)
    return result
