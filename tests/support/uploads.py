"""Picture files that programs write, what strangers make of them, and files that are made to harm."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

SIDES = (40, 30)


def saved(image: Image.Image, kind: str = "png", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)  # type: ignore[arg-type]
    return file.getvalue()


def colours(width: int = SIDES[0], height: int = SIDES[1]) -> Image.Image:
    """RGB without a symmetry: red grows to the right, green downwards."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x * 255 // width, y * 255 // height, x * 0 + 40], -1).astype(np.uint8))


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, body: bytes, kind: int = 2, more: bytes = b"") -> bytes:
    """A PNG of 8 bits (kind 2: RGB) whose pixels are `body`, compressed already; `more`: chunks before it."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + more + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def exif(orientation: int, entries: int = 1) -> bytes:
    """EXIF whose last entry is the orientation; entries before it claim all of the file as their values."""
    claims = struct.pack(">HHII", 0x9286, 7, 1 << 16, 0) * (entries - 1)
    body = claims + struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0)
    return b"Exif\0\0" + b"MM\0*" + struct.pack(">IH", 8, entries) + body + b"\0" * 4


def files() -> dict[str, bytes]:
    """Return files of every kind and mode that are taken, by a name."""
    image = colours()
    grey16 = Image.fromarray(np.arange(SIDES[0] * SIDES[1], dtype=np.uint16).reshape(SIDES[::-1]) * 50)
    clear = image.copy()
    clear.putalpha(Image.linear_gradient("L").resize(SIDES))
    tagged = Image.Exif()
    tagged[0x0112] = 6
    return {
        "png": saved(image),
        "png palette": saved(image.quantize(16)),
        "png palette, transparent": saved(image.quantize(16), transparency=3),
        "png grey": saved(image.convert("L")),
        "png 1 bit": saved(image.convert("1")),
        "png 16 bits": saved(grey16),
        "png transparent": saved(clear),
        "png grey, transparent": saved(clear.convert("LA")),
        "png exif": saved(image, exif=tagged),
        "jpeg": saved(image, "jpeg"),
        "jpeg progressive": saved(image, "jpeg", progressive=True),
        "jpeg grey": saved(image.convert("L"), "jpeg"),
        "jpeg exif": saved(image, "jpeg", exif=tagged),
        "webp": saved(image, "webp"),
        "webp lossless": saved(image, "webp", lossless=True),
        "webp transparent": saved(clear, "webp"),
        "webp exif": saved(image, "webp", exif=tagged),
    }


def mutated(data: bytes, chance: random.Random) -> bytes:
    """Change bytes, cut, repeat or move a part, or set a length: one to four times."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at, length = chance.randrange(len(changed)), chance.choice((1, 2, 4, 17, 200))
        match chance.randrange(6):
            case 0:
                changed[at] ^= 1 << chance.randrange(8)
            case 1:
                changed[at : at + length] = chance.randbytes(length)
            case 2:
                del changed[at : at + length]
            case 3:
                changed[at:at] = changed[at : at + length]
            case 4:
                changed[at : at + 4] = struct.pack(">I", chance.choice((0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 65536)))
            case _:
                del changed[max(at, 12) :]
        if not changed:
            break
    return bytes(changed) or b"\0"


def bombs() -> dict[str, tuple[Callable[[], bytes], str]]:
    """Return files that are made to harm, and what is said of each; None where it is harmless."""
    side = 12_800
    empty = zlib.compress(b"\0" * ((3 * side + 1) * side), 9)
    frames = saved(colours(8, 8), "webp", save_all=True, append_images=[colours(8, 8).rotate(90)] * 3)
    scan = b"\xff\xda\x00\x08\x01\x01\x00\x01\x01\x00\x3f"
    plain = saved(colours(), "jpeg")
    profile = chunk(b"iCCP", b"x\0\0" + zlib.compress(b"\0" * (64 << 20)))
    return {
        "12,800 x 12,800": (lambda: png(side, side, empty), "has 12800x12800 pixels; at most 16 megapixels are taken"),
        "2^31 x 2^31": (lambda: png(2**31 - 1, 2**31 - 1, b""), "at most 16 megapixels"),
        "an empty side": (lambda: png(0, 5, b""), "has 0x5 pixels"),
        "APNG of 10,000 frames": (
            lambda: png(8, 8, b"", more=chunk(b"acTL", struct.pack(">II", 10_000, 0))),
            "is animated; send a single picture",
        ),
        "animated WebP": (lambda: frames, "is animated; send a single picture"),
        "WebP cut short": (lambda: saved(colours(400, 300), "webp")[:200], "damaged or cut short"),
        "PNG cut short": (lambda: saved(colours())[:60], "ends within a chunk"),
        "JPEG cut short": (lambda: plain[: len(plain) // 2], "ends within its header"),
        "PNG of 30,000 chunks": (lambda: png(8, 8, b"", more=chunk(b"tEXt", b"a\0b") * 30_000), "20000 chunks"),
        "JPEG of 5,000 segments": (lambda: plain[:2] + b"\xff\xfe\0\2" * 5000 + plain[2:], "2000 segments"),
        "JPEG of 1,000 scans": (lambda: plain[:-2] + scan * 1000 + plain[-2:], "more than 100 scans"),
        "CMYK": (lambda: saved(colours().convert("CMYK"), "jpeg"), "has 4 components, such as CMYK; save it as RGB"),
        "GIF": (lambda: saved(colours().quantize(16), "gif"), "is none of PNG, JPEG and WebP, by its first bytes"),
        "a PNG's first bytes alone": (lambda: b"\x89PNG\r\n\x1a\n", "ends within its header"),
        "nothing": (lambda: b"", "is none of PNG"),
        "a profile of 64 MB": (lambda: png(8, 8, zlib.compress(b"\0" * 25 * 8), more=profile), ""),
        "EXIF that claims 300 MB": (
            lambda: plain[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(e := exif(1, 5000))) + e + plain[2:],
            "",
        ),
    }
