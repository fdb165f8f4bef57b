"""Small PDF files, written by hand so that each holds one thing that a reader of PDFs must know."""

import zlib

import numpy as np

SIDE = 400  # points of the page
TEXTURE = np.random.default_rng(3).integers(0, 256, (200, 200, 3), dtype=np.uint8)
DRAW = b"q 200 0 0 200 100 100 cm /I Do Q\n"  # 200 x 200 points, lower left corner at (100, 100)
FONT = b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>"


def stream(entries, content):
    """A stream object: the entries of its dictionary and its content."""
    return b"<<%s/Length %d>>\nstream\n%s\nendstream" % (entries, len(content), content)


def image(pixels, entries=b""):
    """An image object, of grey or RGB pixels."""
    space = b"/DeviceGray" if pixels.ndim == 2 else b"/DeviceRGB"
    head = b"/Type/XObject/Subtype/Image/Width %d/Height %d/BitsPerComponent 8/ColorSpace%s/Filter/FlateDecode" % (
        pixels.shape[1],
        pixels.shape[0],
        space,
    )
    return stream(head + entries, zlib.compress(pixels.tobytes()))


def make_pdf(path, pages, objects, resources=b"/XObject<</I 10 0 R>>", page=b"", catalog=b""):
    """Write a PDF.

    Args:
        pages: the content of each page.
        objects: numbered from 10 on.
        resources: of all pages; /F1 is a font.
        page, catalog: further entries of each page and of the catalog.
    """
    last = 10 + len(objects)
    numbers = [last + 2 * k for k in range(len(pages))]
    items = {
        1: b"<</Type/Catalog/Pages 2 0 R%s>>" % catalog,
        2: b"<</Type/Pages/Count %d/Kids[%s]>>" % (len(pages), b" ".join(b"%d 0 R" % n for n in numbers)),
        3: FONT,
    }
    items |= dict(enumerate(objects, 10))
    for number, content in zip(numbers, pages, strict=True):
        items[number] = (
            b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 %d %d]/Contents %d 0 R/Resources<</Font<</F1 3 0 R>>%s>>%s>>"
            % (SIDE, SIDE, number + 1, resources, page)
        )
        items[number + 1] = stream(b"", content)
    data, places = b"%PDF-1.7\n", {}
    for number in sorted(items):
        places[number] = len(data)
        data += b"%d 0 obj\n%s\nendobj\n" % (number, items[number])
    size = max(items) + 1
    table = b"".join(
        b"%010d %05d %s \n" % (places.get(n, 0), 0 if n in places else 65535, b"n" if n in places else b"f")
        for n in range(size)
    )
    data += b"xref\n0 %d\n%strailer\n<</Size %d/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF\n" % (size, table, size, len(data))
    path.write_bytes(data)
    return path


def text(x, y, words, size=9):
    """Content that writes a line."""
    return b"BT /F1 %g Tf %g %g Td (%s) Tj ET\n" % (size, x, y, words.encode("cp1252"))
