"""What an uploaded picture file is, by its own first bytes, before any decoder sees it.

Whoever may send a request may send these bytes. So the kind, the sides and the orientation are read here, in bounded
time, and of a PNG or a JPEG only the parts that pixels are made of are handed on: profiles, EXIF, texts and thumbnails
reach no parser. Sources: PNG (Third Edition) 5 and 11; ITU-T T.81 B; RFC 9649; TIFF 6.0, 2, with EXIF's tag 274.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from pipeline.errors import InvalidRequest

PIXELS = 16_000_000  # of an uploaded picture: 48 MB as RGB
# Far beyond what programs write (a 16 MB PNG has 2,000 chunks), and not yet a second of work: each costs a decoder a
# few microseconds of Python, or a scan of a progressive JPEG all of its pixels.
_CHUNKS, _SEGMENTS, _SCANS = 20_000, 2_000, 100
_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_OF_PIXELS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}


@dataclass(frozen=True)
class Container:
    """Describes a picture file. `data` is the file as a decoder gets it."""

    kind: str  # "PNG", "JPEG" or "WEBP"
    width: int
    height: int
    orientation: int  # EXIF's, 1..8; 1: as it is stored
    data: bytes


class _Refused(Exception):  # noqa: N818 (the rest of a sentence)
    """Carries the rest of a sentence that begins with the field's name."""


def read_container(field: str, data: bytes) -> Container:
    """Read what `data`, of a request's `field`, says of itself.

    Errors: InvalidRequest for another kind of file, too many pixels, an animation, CMYK, or a header that is damaged.
    """
    try:
        if data.startswith(_PNG):
            container = _png(data)
        elif data.startswith(_JPEG):
            container = _jpeg(data)
        elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            container = _webp(data)
        else:
            raise _Refused("is none of PNG, JPEG and WebP, by its first bytes")
    except (struct.error, IndexError):
        raise InvalidRequest(f"{field} ends within its header; send the whole file") from None
    except _Refused as words:
        raise InvalidRequest(f"{field} {words}") from None
    return container


def _checked(width: int, height: int) -> tuple[int, int]:
    if width * height > PIXELS:
        raise _Refused(f"has {width}x{height} pixels; at most {PIXELS // 10**6} megapixels are taken")
    if not width * height:
        raise _Refused(f"has {width}x{height} pixels")
    return width, height


def _png(data: bytes) -> Container:
    sides, orientation, kept, at = (0, 0), 1, [data[:8]], 8
    for _ in range(_CHUNKS):
        length, name = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data):
            raise _Refused("ends within a chunk; send the whole file")
        if at == 8:
            if name != b"IHDR":
                raise _Refused("has no header")
            sides = _checked(*struct.unpack_from(">II", data, at + 8))
        if name == b"acTL":
            raise _Refused("is animated; send a single picture")
        if name == b"eXIf":
            orientation = _orientation(data[at + 8 : end - 4])
        if name in _OF_PIXELS:
            kept.append(data[at:end])
        if name == b"IEND":
            return Container("PNG", *sides, orientation, b"".join(kept))
        at = end
    raise _Refused(f"has more than {_CHUNKS} chunks; save it again")


def _jpeg(data: bytes) -> Container:
    sides, orientation, kept, at = (0, 0), 1, [data[:2]], 2
    for _ in range(_SEGMENTS):
        if data[at] != 0xFF:
            raise _Refused("is damaged: there is no marker where one has to be")
        marker = data[at + 1]
        if marker == 0xFF or marker == 0x01 or 0xD0 <= marker <= 0xD7:  # a filler, or a marker without a segment
            at += 1 if marker == 0xFF else 2
            continue
        if marker == 0xDA:  # pixels from here on
            if data.count(b"\xff\xda", at) > _SCANS:
                raise _Refused(f"has more than {_SCANS} scans; save it again")
            return Container("JPEG", *_checked(*sides), orientation, b"".join([*kept, data[at:]]))
        (length,) = struct.unpack_from(">H", data, at + 2)
        end = at + 2 + length
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            bits, height, width, components = struct.unpack_from(">BHHB", data, at + 4)
            if components not in (1, 3):
                raise _Refused(f"has {components} components, such as CMYK; save it as RGB")
            if bits != 8:
                raise _Refused(f"has {bits} bits a component; save it with 8")
            sides = width, height
        if marker == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0":
            orientation = _orientation(data[at + 10 : end])
        # Of what applications add, JFIF's and Adobe's say what the numbers mean.
        if not (0xE1 <= marker <= 0xED or marker in (0xEF, 0xFE)):
            kept.append(data[at:end])
        at = end
    raise _Refused(f"has more than {_SEGMENTS} segments before its pixels; save it again")


def _webp(data: bytes) -> Container:
    name = data[12:16]
    if name == b"VP8 ":
        start, width, height = struct.unpack_from("<3sHH", data, 23)
        if start != b"\x9d\x01\x2a":
            raise _Refused("is damaged: its first frame does not begin as one")
        return Container("WEBP", *_checked(width & 0x3FFF, height & 0x3FFF), 1, data)
    if name == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return Container("WEBP", *_checked((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1), 1, data)
    if name != b"VP8X":
        raise _Refused("is damaged: it does not begin with a picture")
    sides = _checked(*(1 + int.from_bytes(data[at : at + 3], "little") for at in (24, 27)))
    if data[20] & 2:
        raise _Refused("is animated; send a single picture")
    orientation, at = 1, 30
    for _ in range(_CHUNKS):
        if at + 8 > len(data):
            break
        name, length = struct.unpack_from("<4sI", data, at)
        if name == b"EXIF":
            orientation = _orientation(data[at + 8 : at + 8 + length].removeprefix(b"Exif\0\0"))
        at += 8 + length + length % 2
    return Container("WEBP", *sides, orientation, data)


def _orientation(tiff: bytes) -> int:
    """Return the orientation that EXIF says, 1 where it says none or nonsense."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None or len(tiff) < 8:
        return 1
    (first,) = struct.unpack_from(f"{order}I", tiff, 4)
    if first + 2 > len(tiff):
        return 1
    (entries,) = struct.unpack_from(f"{order}H", tiff, first)
    for entry in range(min(entries, (len(tiff) - first - 2) // 12)):
        tag, kind, _, value = struct.unpack_from(f"{order}HHIH", tiff, first + 2 + 12 * entry)
        if tag == 274:
            return value if kind == 3 and 1 <= value <= 8 else 1
    return 1
