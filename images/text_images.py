"""Whether an image shows nothing but text: a scanned page of letters, a table that was inserted as an image."""

import cv2
import numpy as np

EXTREME_SHARE = 0.9  # of the pixels of an image of text that are nearly as dark as its ink or as light as its paper
TONE_SHARE = 0.002  # of the pixels that are neither paper nor beside ink: the ground of a blot, a photograph
LEAST_LETTERS = 60
TALLEST = 3.0  # median heights of letters, to which a connected piece of ink may be one
RULE = 0.25  # height of a rule by its width
LETTER_SHARE = 0.9  # of the ink that is in letters and rules
ROW_SHARE = 0.75  # of the ink that lies in the fuller half of the rows: lines of text leave rows between them empty


def is_text(pixels: np.ndarray) -> bool:
    """Whether an image (H, W, 3) uint8 RGB is made of small dark letters in rows, and of rules, on light paper."""
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    _, ink = cv2.threshold(grey, 0, 1, cv2.THRESH_BINARY_INV | cv2.THRESH_OTSU)
    share = ink.mean()
    if not 0.005 < share < 0.35:
        return False
    light, dark = np.median(grey[ink == 0]), np.median(grey[ink == 1])
    if light - dark < 100 or np.mean((grey > light - 40) | (grey < dark + 40)) < EXTREME_SHARE:
        return False
    beside = cv2.dilate(ink, np.ones((7, 7), np.uint8)) - ink  # where letters fade into the paper
    if np.mean((grey < light - 16) & (ink == 0) & (beside == 0)) > TONE_SHARE:
        return False
    _, _, stats, _ = cv2.connectedComponentsWithStats(ink, connectivity=8)
    width, height, area = stats[1:, cv2.CC_STAT_WIDTH], stats[1:, cv2.CC_STAT_HEIGHT], stats[1:, cv2.CC_STAT_AREA]
    large = area >= 6  # pixels; what is smaller is dirt
    if large.sum() < LEAST_LETTERS:
        return False
    tallest = TALLEST * np.median(height[large])
    letters = (height <= tallest) & (width <= 4 * tallest) | (height <= RULE * width) & (height <= tallest)
    if area[letters].sum() < LETTER_SHARE * area.sum() or tallest > 0.2 * grey.shape[0]:
        return False
    rows = np.sort(ink.sum(axis=1))
    return bool(rows[len(rows) // 2 :].sum() > ROW_SHARE * rows.sum())
