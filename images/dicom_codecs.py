"""A plug-in for pydicom that decodes compressed frames with imagecodecs."""

import imagecodecs
import numpy as np
from pydicom import uid
from pydicom.pixels.common import PhotometricInterpretation
from pydicom.pixels.decoders.base import DecodeRunner

JPEG = (uid.JPEGLossless, uid.JPEGLosslessSV1, uid.JPEGExtended12Bit)
JPEGLS = (uid.JPEGLSLossless, uid.JPEGLSNearLossless)
JPEG2000 = (uid.JPEG2000Lossless, uid.JPEG2000, uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K)
# What pydicom asks a plug-in for: the formats, and what they need.
DECODER_DEPENDENCIES = dict.fromkeys((*JPEG, *JPEGLS, *JPEG2000), ("imagecodecs",))


def is_available(syntax: str) -> bool:
    """Whether frames of a transfer syntax can be decoded."""
    return syntax in DECODER_DEPENDENCIES


def decode_frame(source: bytes, runner: DecodeRunner) -> bytes:
    """The values of one frame as bytes, little endian, colours pixel by pixel."""
    syntax = runner.transfer_syntax
    if syntax in JPEGLS:
        values = imagecodecs.jpegls_decode(source)
    elif syntax == uid.JPEGExtended12Bit:
        values = imagecodecs.jpeg8_decode(source)
    elif syntax in JPEG:
        values = imagecodecs.ljpeg_decode(source) if runner.samples_per_pixel == 1 else imagecodecs.jpeg8_decode(source)
    else:
        values = imagecodecs.jpeg2k_decode(source)
        if runner.photometric_interpretation in (PhotometricInterpretation.YBR_ICT, PhotometricInterpretation.YBR_RCT):
            runner.set_option("photometric_interpretation", PhotometricInterpretation.RGB)
    runner.set_option("planar_configuration", 0)
    runner.set_option("bits_allocated", 8 * values.dtype.itemsize)
    return np.ascontiguousarray(values).tobytes()
