"""Prints how many colours a part of a PNG picture has that each cover at least so many of its pixels.

    png_colours.py FILE X Y WIDTH HEIGHT PIXELS

Reads what browsers write: 8 bits, RGB or RGBA, not interlaced."""
import collections
import struct
import sys
import zlib


def chunks(data):
    at = 8
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        yield data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        at += 12 + length


def rows(path):
    with open(path, "rb") as f:
        data = f.read()
    assert data[:8] == b"\x89PNG\r\n\x1a\n", "not a PNG"
    packed = b""
    for kind, body in chunks(data):
        if kind == b"IHDR":
            width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", body)
            assert depth == 8 and colour in (2, 6) and not interlaced, "another kind of PNG"
        if kind == b"IDAT":
            packed += body
    n = 3 if colour == 2 else 4
    raw, before = zlib.decompress(packed), bytearray(width * n)
    for y in range(height):
        kind = raw[y * (width * n + 1)]
        line = bytearray(raw[y * (width * n + 1) + 1 : (y + 1) * (width * n + 1)])
        for i in range(len(line)):
            left, up, corner = (line[i - n] if i >= n else 0), before[i], (before[i - n] if i >= n else 0)
            if kind == 1:
                line[i] = (line[i] + left) & 255
            elif kind == 2:
                line[i] = (line[i] + up) & 255
            elif kind == 3:
                line[i] = (line[i] + (left + up) // 2) & 255
            elif kind == 4:
                p = left + up - corner
                a, b, c = abs(p - left), abs(p - up), abs(p - corner)
                line[i] = (line[i] + (left if a <= b and a <= c else up if b <= c else corner)) & 255
        before = line
        yield [bytes(line[i : i + 3]) for i in range(0, len(line), n)]


path, (left, top, width, height, pixels) = sys.argv[1], map(int, sys.argv[2:7])
count = collections.Counter()
for y, row in enumerate(rows(path)):
    if top <= y < top + height:
        count.update(row[left : left + width])
print(sum(1 for n in count.values() if n >= pixels))
