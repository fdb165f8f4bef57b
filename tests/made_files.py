"""Small images, masks and data sets, made up and written to files."""

import cv2
import numpy as np
from PIL import Image

from config import DataSettings


def noise(height, width, seed=0):
    """An image with structure of several pixels, so that resizing keeps something of it."""
    small = np.random.default_rng(seed).integers(0, 256, (-(-height // 8), -(-width // 8), 3), np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return path


def save_npy(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)
    return path


def block(height, width, top, left, side, value=1):
    mask = np.zeros((height, width), np.uint8)
    mask[top : top + side, left : left + side] = value
    return mask


def plain_folder(root, count=4, size=(60, 90)):
    """`count` authentic images and as many forged ones of the same ids, each with one instance."""
    for number in range(count):
        save(root / "authentic" / f"{number}.png", noise(*size, number))
        save(root / "forged" / f"{number}.png", noise(*size, number))
        save_npy(root / "masks" / f"{number}.npy", block(*size, 5 * number, 30, 30)[None])
    return root


def data_settings(root, **changes):
    return DataSettings(data=root, **changes)


def damage(path):
    """Damage that only decoding shows: the header and the end stay."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
