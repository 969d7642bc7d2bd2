"""Reads what a plan of TensorRT for RTX says about itself in its first 64 bytes: version, length, classes of GPU.

NVIDIA documents the header's length (Runtime.engine_header_size) and not its fields: these were read off plans of
1.7.1.116 for six targets. So they confirm the target and decide nothing: a header that begins otherwise is read as
`None`, and the plan's SHA-256 in the manifest vouches for it either way.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

HEADER = 64  # bytes
_MAGIC, _LAYOUT = b"vtrt\0\0\0\0", 2
# Bit i of the mask at byte 32.
_CLASSES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_120", "sm_121")


@dataclass(frozen=True)
class Header:
    version: str  # of TensorRT for RTX, "1.7.1.116"
    length: int  # bytes of the whole plan
    targets: tuple[str, ...]


def read_header(plan: bytes) -> Header | None:
    """Return the header in a plan's first bytes, None where it is not laid out as known."""
    if len(plan) < HEADER or plan[:8] != _MAGIC:
        return None
    layout, length, *version, again, mask = struct.unpack_from("<QQ4B4sI", plan, 8)
    if layout != _LAYOUT or again != _MAGIC[:4] or mask >> len(_CLASSES):
        return None
    targets = tuple(name for i, name in enumerate(_CLASSES) if mask >> i & 1)
    return Header(".".join(str(part) for part in version), length, targets)
