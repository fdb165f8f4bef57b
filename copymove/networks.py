"""The small networks in weights/, which OpenCV runs."""

import functools
from pathlib import Path

import cv2


@functools.cache
def load_network(path: Path, command: str) -> "cv2.dnn.Net":
    """A network, read once.

    Args:
        command: of benchmark.py, that makes it.
    Raises:
        FileNotFoundError: there is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; make it with benchmark.py {command}")
    return cv2.dnn.readNetFromONNX(str(path))
