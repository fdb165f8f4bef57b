"""Files and names as an attacker would make them: small on the disk, huge or endless once they are opened."""

import os
import zlib
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

SIDE = 50_000  # pixels of a bomb's side, 2.5 gigapixels
BOMBS = ("bomb.pdf", "bomb.png", "content.pdf", "eps.png", "forms.pdf", "sparse.png")  # must be refused
# Stems under which a data set must be readable: control characters, quotes, bytes that are no UTF-8, formulas of a
# spreadsheet, options of a command line, patterns, HTML.
STEMS = (b"new\nline", b"quote'\"", b"a..b", b"\xff\xfe", b"=cmd()|A0", b"\x1b[31mred", b"<script>alert(1)<",
         b"x" * 240, b" ", b"-rf", b"a,b;c", b"caf\xc3\xa9", b"%s%n{}", b"*?[a]", b"$(id)`id`", b"con")  # fmt: skip


def write_hostile_folder(folder: Path) -> None:
    """Bombs, harmless images under hostile names, links in loops, a folder and a pipe that are named as images."""
    (folder / "links").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    png = cv2.imencode(".png", pixels)[1].tobytes()
    for name in (b"new\nline.png", b"quote'\".png", b"a..png", b"\xff\xfe.png", b"=cmd()|A0.png", b"\x1b[31mred.png",
                 b"<script>alert(1)<.png", b"x" * 251 + b".png", b"links/a.png"):  # fmt: skip
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(png)
    (folder / "links" / "loop").symlink_to(folder / "links")
    (folder / "links" / "up").symlink_to(folder / "links" / "loop")
    (folder / "self.png").symlink_to(folder / "self.png")
    (folder / "a.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    write_png_bomb(folder / "bomb.png", SIDE)
    (folder / "sparse.png").write_bytes(png)
    os.truncate(folder / "sparse.png", 100 * 10**9)
    # Pillow would start Ghostscript for it.
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) run\n%%EOF\n"
    (folder / "eps.png").write_bytes(eps)
    write_pdf_bombs(folder)


def write_png_bomb(path: Path, side: int) -> None:
    """A valid PNG of `side` x `side` black pixels."""
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(bytes(side + 1)) for _ in range(side)) + packer.flush()
    header = side.to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])  # 8-bit grey
    with path.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for name, content in ((b"IHDR", header), (b"IDAT", packed), (b"IEND", b"")):
            file.write(len(content).to_bytes(4, "big") + name + content + zlib.crc32(name + content).to_bytes(4, "big"))


def write_pdf_bombs(folder: Path) -> None:
    """forms.pdf, whose forms draw ten forms each, eight deep; content.pdf, a page of 3 GB; bomb.pdf, a huge image."""
    image = (
        b"/Type/XObject/Subtype/Image/ColorSpace/DeviceGray/BitsPerComponent 8/Filter/FlateDecode/Width %d/Height %d"
    )
    small = pdf_stream(image % (100, 100), zlib.compress(bytes(range(100)) * 100))
    write_pdf(folder / "forms.pdf", pdf_stream(b"", b"/F Do " * 10), [*nested_forms(7), small])
    write_pdf(folder / "content.pdf", gigabytes_of_content(), [small])
    huge = pdf_stream(image % (SIDE, SIDE), zlib.compress(bytes(10**7)))
    write_pdf(folder / "bomb.pdf", pdf_stream(b"", b"q 400 0 0 400 0 0 cm /F Do Q"), [huge])


def nested_forms(depth: int) -> list[bytes]:
    """Objects of a PDF, numbered from 5 on: forms that each draw the next object ten times."""
    form = b"/Type/XObject/Subtype/Form/BBox[0 0 9 9]/Resources<</XObject<</F %d 0 R>>>>"
    return [pdf_stream(form % number, b"/F Do " * 10) for number in range(6, 6 + depth)]


def gigabytes_of_content() -> bytes:
    """A page's content of 3 GB, packed into 3 MB."""
    packer = zlib.compressobj(9)
    first = packer.compress(b"q Q " * (1 << 18)) + packer.flush(zlib.Z_FULL_FLUSH)
    later = packer.compress(b"q Q " * (1 << 18)) + packer.flush(zlib.Z_FULL_FLUSH)  # without the stream's header
    return pdf_stream(b"/Filter/FlateDecode", first + later * 3000)


def pdf_stream(entries: bytes, content: bytes) -> bytes:
    """A stream object of a PDF: the entries of its dictionary, and its content."""
    return b"<<%s/Length %d>>\nstream\n%s\nendstream" % (entries, len(content), content)


def write_pdf(path: Path, content: bytes, objects: Sequence[bytes]) -> None:
    """A PDF of one page with this content; `/F` in it is the first of the objects, which are numbered from 5 on."""
    page = b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 600 800]/Contents 4 0 R/Resources<</XObject<</F 5 0 R>>>>>>"
    tree = b"<</Type/Pages/Kids[3 0 R]/Count 1>>"
    data, places = b"%PDF-1.7\n", []
    for number, item in enumerate([b"<</Type/Catalog/Pages 2 0 R>>", tree, page, content, *objects], 1):
        places.append(len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (number, item)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    end = b"trailer\n<</Size %d/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF\n" % (len(places) + 1, len(data))
    path.write_bytes(data + b"xref\n0 %d\n0000000000 65535 f \n" % (len(places) + 1) + table + end)
