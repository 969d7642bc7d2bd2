"""The weights of a checkpoint: where each tensor lies, by the names that the networks give them.

Nothing is read before it is needed and nothing is copied: a backend takes arrays over the mapped files.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.checkpoint.header import BYTES, StoredTensor, read_header
from pipeline.checkpoint.mapping import Mapping as MappedFile
from pipeline.checkpoint.parts import SECOND, STEMS, files_of, known_name, weight_files
from pipeline.checkpoint.soundness import check_types, digest_of
from pipeline.errors import CheckpointError

Shape = tuple[int, ...]
Tensors = Mapping[str, StoredTensor]

_EVERY = 0.05  # seconds between two times that pages are let go: 1.9 instead of 5.2 GB for an SD 1.5 UNet in float32


class Weights:
    """Holds tensors by part ("text_encoder", "unet", "vae") and name; their files stay mapped as long as it lives."""

    def __init__(self, parts: Mapping[str, Tensors], where: Mapping[str, Path]) -> None:
        """Open every file, so that its bytes are those that its header was read for.

        `where`: what an error about a part names, a file or a folder. Errors: CheckpointError.
        """
        self._parts, self._where = parts, where
        self._files: dict[Path, MappedFile] = {}
        for tensor in (each for tensors in parts.values() for each in tensors.values()):
            if tensor.path not in self._files:
                self._files[tensor.path] = MappedFile(tensor.path)
            if tensor.offset + tensor.length > len(self._files[tensor.path]):
                raise CheckpointError(f"{tensor.path} became shorter while it was read")

    def tensors(self, part: str) -> Tensors:
        return self._parts[part]

    def bytes(self, part: str) -> int:
        """Count the bytes of a part as they are stored."""
        return sum(tensor.length for tensor in self._parts[part].values())

    @property
    def total(self) -> int:
        """Count the bytes of all parts as they are stored."""
        return sum(map(self.bytes, self._parts))

    @property
    def files(self) -> list[Path]:
        return sorted(self._files)

    def with_tensors(self, part: str, tensors: Tensors) -> Weights:
        """Return these weights with further tensors of a part, or a further part; they may lie in other files.

        Errors: CheckpointError.
        """
        return Weights({**self._parts, part: {**self._parts.get(part, {}), **tensors}}, self._where)

    def check(self, part: str, wanted: Mapping[str, Shape], whose: str = "its config") -> None:
        """Compare a part with the names and shapes that its networks have: all of them, and no others.

        `whose`: what an error says that the part does not fit.

        Errors: CheckpointError that names the first of each kind of fault.
        """
        tensors = self._parts[part]
        check_types(tensors.items())
        faults = {
            "missing": [name for name in wanted if name not in tensors],
            "unknown": [name for name in tensors if name not in wanted],
            "of another shape": [
                f"{name} has shape {list(tensors[name].shape)}, {whose} says {list(shape)}"
                for name, shape in wanted.items()
                if name in tensors and not _fits(part, tensors[name].shape, shape)
            ],
        }
        words = [
            f"{len(some)} {what} ({', '.join(some[:3])}{', ...' if len(some) > 3 else ''})"
            for what, some in faults.items()
            if some
        ]
        if words:
            raise CheckpointError(
                f"{self._where[part]} does not fit {whose}: of {len(wanted)} tensors, {'; '.join(words)}"
            )

    def array(self, part: str, name: str, shape: Shape) -> NDArray[np.generic]:
        """Return a tensor in the network's shape: a view of the file, in the type that it has there.

        bfloat16 comes as uint16. A copy is made of float64, as float32, and of what lies at an odd offset.
        """
        tensor = self._parts[part][name]
        flat = self._files[tensor.path].array(tensor)
        if tensor.dtype == "F64":
            flat = flat.astype(np.float32)
        elif not self.is_mapped(part, name) and not tensor.turned:
            flat = flat.copy()
        return flat.reshape(shape)

    def float32(self, part: str, name: str, shape: Shape) -> NDArray[np.float32]:
        """Return a tensor in float32: a view of the file where it is stored so, or a copy."""
        array = self.array(part, name, shape)
        if self.is_bfloat16(part, name):  # the upper half of a float32
            return (array.astype(np.uint32) << 16).view(np.float32)
        return array.astype(np.float32, copy=False)

    def pieces(self, part: str, name: str, size: int) -> Iterator[bytes]:
        """Read a tensor's bytes as they are stored, at most `size` at once. Errors: CheckpointError."""
        tensor = self._parts[part][name]
        return self._files[tensor.path].pieces(tensor, size)

    def is_mapped(self, part: str, name: str) -> bool:
        """Tell whether `array` gives a view of the file, which stays, rather than a copy that goes with its user."""
        tensor = self._parts[part][name]
        return tensor.dtype != "F64" and not tensor.turned and tensor.offset % BYTES[tensor.dtype] == 0

    def is_bfloat16(self, part: str, name: str) -> bool:
        return self._parts[part][name].dtype == "BF16"

    def check_unchanged(self) -> None:
        """Compare the files' sizes and times. Errors: CheckpointError where somebody has written to an opened one."""
        for each in self._files.values():
            each.check_unchanged()

    @contextlib.contextmanager
    def letting_go(self) -> Iterator[None]:
        """Give back the mapped pages again and again while the caller makes copies of them, and once more after it."""
        done = threading.Event()

        def again() -> None:
            while not done.wait(_EVERY):
                self._let_go()

        thread = threading.Thread(target=again, name="letting go", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            self._let_go()

    def digest(self) -> str:
        """Hash every tensor and look for NaN on the way: SHA-256 of names, types, shapes and bytes, as 64 hex digits.

        It is the same for one file, shards and a single file, where their tensors are. It reads all bytes once, with
        as many threads as there are cores. Errors: CheckpointError naming a tensor that is not finite.
        """
        named = ((f"{part}.{name}", tensor) for part, each in self._parts.items() for name, tensor in each.items())
        return digest_of(named, self._files)

    def _let_go(self) -> None:
        for each in self._files.values():
            each.let_go()


def _fits(part: str, stored: Shape, wanted: Shape) -> bool:
    """Return whether a shape fits: old VAEs keep their attention's projections as 1x1 convolutions, the same bytes."""
    old = part == "vae" and len(stored) == 4 and len(wanted) == 2 and stored[2:] == (1, 1)
    return (stored[:2] if old else stored) == wanted


def folder_weights(checkpoint: Path, two_texts: bool = False) -> Weights:
    """Find the weights of a folder in diffusers' layout, whole or in shards; `two_texts`: SDXL's, which has two.

    Errors: CheckpointError.
    """
    parts, where = {}, {}
    for part in STEMS:
        files = weight_files(checkpoint, part)
        parts[part], where[part] = named_tensors(part, files), files[0] if len(files) == 1 else checkpoint / part
    if two_texts and not any(name.startswith(f"{SECOND}.") for name in parts["text_encoder"]):
        parts["text_encoder"] |= named_tensors(SECOND, files_of(checkpoint / SECOND, STEMS["text_encoder"]))
        where["text_encoder"] = checkpoint
    return Weights(parts, where)


def named_tensors(part: str, files: list[Path]) -> dict[str, StoredTensor]:
    """Read the headers of a part's files: tensors by the networks' names. Errors: CheckpointError."""
    tensors: dict[str, StoredTensor] = {}
    for path in files:
        for key, tensor in read_header(path)[0].items():
            name = known_name(part, key)
            if name is None:
                continue
            if name in tensors:
                first = tensors[name].path
                raise CheckpointError(
                    f"{path if path == first else f'{first} and {path}'}: the tensor {name} is there twice"
                )
            tensors[name] = tensor
    return tensors
