"""Colours that the page's files, its plots and its cut-outs share."""

# Okabe and Ito (2008): seven colours that the common kinds of colour blindness keep apart. Instance k has colour
# (k - 1) modulo 7.
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#D55E00", "#CC79A7", "#0072B2")

FRAME_RGB = (230, 234, 239)  # the grey behind every image on the page; cut-outs show it outside of the image


def to_rgb(colour: str) -> tuple[int, int, int]:
    """Red, green and blue (0 to 255) of a colour written as #RRGGBB."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
