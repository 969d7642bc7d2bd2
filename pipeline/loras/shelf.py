"""The folder of LoRAs that a server offers: each safetensors file in it is a name.

It is looked at when somebody asks, so that a file that is put there is a name at once, and one that is taken away is
none. Names never leave it: they are plain, and links out of it are refused.
"""

from __future__ import annotations

import os
import re
import threading
import weakref
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.arrays import F32, to_bfloat16
from pipeline.errors import CheckpointError, InvalidRequest
from pipeline.loras.file import Identity, LoraFile, identity_of, open_lora
from pipeline.loras.layers import RANKS, bucket, inputs_of, text_layers, unet_layers
from pipeline.loras.lora import Lora, zeros
from pipeline.loras.names import Names
from pipeline.spec import Spec

ENDING = ".safetensors"
KEPT = 512 << 20  # bytes of LoRAs that are remembered: of rank 32, float32, some six of SD 1.5, one of SDXL
_MOST_FILES = 1000  # that are listed
Key = tuple[tuple[Identity, float], ...]  # of LoRAs: each one's file, and its weight

# Of those that clients write `name:0.8`. A surrogate stands for a byte that is no UTF-8, which no client can be told.
_NAME = re.compile(r"[^/\\\0:<>.\ud800-\udfff][^/\\\0:<>\ud800-\udfff]{0,127}")


@dataclass(frozen=True)
class Listed:
    """Describes a file of the folder."""

    name: str
    base: str  # the family of models that it is for; "" where no tensor tells
    size: int  # bytes
    refusal: str = ""  # why it cannot be used here


@dataclass(frozen=True)
class Chosen:
    """Holds the LoRAs of a request, each with its weight; none of their numbers."""

    files: tuple[tuple[LoraFile, float], ...]
    bfloat16: bool = False  # is what they add to the UNet read as this?

    @property
    def rank(self) -> int:
        """Return the rank that is run for all of them together."""
        return bucket(self._ranks())

    @property
    def key(self) -> Key:
        """Tell these LoRAs at these weights from others."""
        return tuple((file.identity, weight) for file, weight in self.files)

    @property
    def text_key(self) -> Hashable:
        """Tell what they add to the text encoder from what others add; None: nothing.

        The rank is a part of it: where others' files make it larger, another engine may have other last bits.
        """
        key = tuple((file.identity, weight) for file, weight in self.files if file.of_text)
        return (self.rank, key) if key else None

    @property
    def nbytes(self) -> int:
        """Count the bytes of what Shelf.lora makes of them: two matrices a layer, filled up to the rank."""
        sides = {place: sum(pair.sides) for file, _ in self.files for place, pair in file.pairs.items()}
        of_unet = 2 if self.bfloat16 else 4
        return self.rank * sum((of_unet if part == "unet" else 4) * side for (part, _), side in sides.items())

    def _ranks(self) -> int:
        """Add up the ranks of the layer that has most."""
        sums: dict[tuple[str, str], int] = {}
        for file, _ in self.files:
            for place, pair in file.pairs.items():
                sums[place] = sums.get(place, 0) + pair.rank
        return max(sums.values(), default=1)


class Shelf:
    """Opens, reads and remembers the LoRAs of a folder for one model. Any thread may call its methods.

    It knows every LoRA that lives, also those that pictures sit with and that it does not remember any more, and tells
    whether one more has room beside them.
    """

    def __init__(self, folder: Path, spec: Spec, model: str, most: int = 4 * KEPT, *, bfloat16: bool = False) -> None:
        """`model`: what errors call it; `most`: bytes that LoRAs may have together while more than one is there.

        `bfloat16`: what they add to the UNet is rounded to that (Backend.lora_dtype); it takes half the memory.

        Errors: CheckpointError where there is no such folder.
        """
        check_folder(folder)
        self.folder = folder.resolve()
        self._model, self._most, self._bfloat16 = model, most, bfloat16
        self._layers = {"unet": unet_layers(spec.unet), "text_encoder": text_layers(spec.text, spec.text_2)}
        self._names = Names(spec.unet, self._layers["unet"], self._layers["text_encoder"])
        self._lock = threading.Lock()  # guards all that follow
        self._opened: dict[str, tuple[Identity, LoraFile | str]] = {}  # or why not
        self._known: OrderedDict[Key, Lora] = OrderedDict()  # remembered, the latest last
        self._living: weakref.WeakValueDictionary[Key, Lora] = weakref.WeakValueDictionary()
        self._reading = 0  # bytes that will live once they have been read

    def listed(self) -> list[Listed]:
        """List the folder's files by name. Each that is new is opened."""
        listed = []
        for name in self._present()[:_MOST_FILES]:
            try:
                file = self._file(name)
                listed.append(Listed(name, file.base, file.size))
            except CheckpointError as error:
                listed.append(Listed(name, "", self._size(name), str(error)))
        return listed

    def chosen(self, wanted: Sequence[tuple[str, float]]) -> Chosen:
        """Open the LoRAs that are called so. Those of weight 0 are left out.

        Errors: InvalidRequest, for names that are none, files that do not fit and ranks that add up to too much.
        """
        files = []
        for name, weight in wanted:
            try:
                file = self._file(name)
            except CheckpointError as error:
                raise InvalidRequest(f"loras: {error}", "loras") from None
            if weight:
                files.append((file, weight))
        chosen = Chosen(tuple(files), self._bfloat16)
        try:
            _ = chosen.rank
        except ValueError as error:
            raise InvalidRequest(f"loras: {error} in all; ranks of several add up", "loras") from None
        return chosen

    def check(self, chosen: Chosen) -> None:
        """Read the numbers of LoRAs, and remember them where there is room. Errors: those of `lora`."""
        if self.living(chosen) is None:
            if self.has_room(chosen):
                self.lora(chosen)
            else:
                for _ in _numbers(chosen):
                    pass

    def living(self, chosen: Chosen) -> Lora | None:
        """Return what LoRAs add where that is in memory, whoever keeps it there; reads no file."""
        with self._lock:
            return self._living_one(chosen.key)

    def has_room(self, chosen: Chosen) -> bool:
        """Return whether LoRAs have room beside those that live, if need be without those that are remembered alone.

        One that is alone has, whatever its size, also while another is being read: nobody has that yet who would leave.
        """
        needed = chosen.nbytes
        with self._lock:
            while living := sum(lora.nbytes for lora in self._living.values()):
                if living + self._reading + needed <= self._most:
                    return True
                if not self._known:
                    return False
                self._known.popitem(last=False)
            return True

    def lora(self, chosen: Chosen) -> Lora:
        """Return what LoRAs add, read from their files where it is not in memory. It asks for no room.

        Errors: CheckpointError, for numbers that are not finite and files that are others by now.
        """
        with self._lock:
            if (known := self._living_one(chosen.key)) is not None:
                return known
            self._reading += chosen.nbytes
        try:
            made = self._merged(chosen)
        finally:
            with self._lock:
                self._reading -= chosen.nbytes
        with self._lock:
            made = self._living.setdefault(chosen.key, made)  # another thread may have been faster
            self._known[chosen.key] = made
            total = sum(lora.nbytes for lora in self._known.values())
            while total > KEPT and len(self._known) > 1:
                total -= self._known.popitem(last=False)[1].nbytes
        return made

    def _living_one(self, key: Key) -> Lora | None:
        if key in self._known:
            self._known.move_to_end(key)
        return self._living.get(key)

    def _merged(self, chosen: Chosen) -> Lora:
        """Lay the matrices of all files side by side along the rank: their products add up."""
        rank = chosen.rank
        halves = {"unet"} if self._bfloat16 else set()
        inputs = {
            part: zeros(layers, rank, np.uint16 if part in halves else np.float32)
            for part, layers in self._layers.items()
        }
        used: dict[tuple[str, str], int] = {}
        for part, layer, a, b in _numbers(chosen):
            (name_a, name_b), into = inputs_of(layer), inputs[part]
            at = used.get((part, layer), 0)
            if not at:
                into[name_a], into[name_b] = np.zeros_like(into[name_a]), np.zeros_like(into[name_b])
            used[part, layer] = end = at + len(a)
            if part in halves:
                a, b = to_bfloat16(a), to_bfloat16(b)
            into[name_a][0, at:end], into[name_b][0, :, at:end] = a, b
        key = chosen.text_key
        return Lora(rank, inputs["unet"], inputs["text_encoder"] if key else None, key, chosen.nbytes)

    def _file(self, name: str) -> LoraFile:
        """Return the file that is called so, opened anew where it is another one by now. Errors: CheckpointError."""
        path = self._place(name)
        try:
            identity = identity_of(os.stat(path))
        except OSError:
            raise CheckpointError(f"there is no LoRA {name[:64]!r}; ListModels tells which there are") from None
        with self._lock:
            seen = self._opened.get(name)
        if seen is None or seen[0] != identity:
            try:
                found: LoraFile | str = open_lora(name, path, self._names, self._layers, self._model)
            except CheckpointError as error:
                found = str(error)
            seen = identity, found
            with self._lock:
                if len(self._opened) > _MOST_FILES:
                    self._opened.clear()
                self._opened[name] = seen
        if isinstance(seen[1], str):
            raise CheckpointError(seen[1])
        return seen[1]

    def _place(self, name: str) -> Path:
        """Return the path of a name, which lies in the folder. Errors: CheckpointError."""
        if not _NAME.fullmatch(name):
            raise CheckpointError(f"there is no LoRA {name[:64]!r}; ListModels tells which there are")
        path = self.folder / f"{name}{ENDING}"
        if path.is_symlink():
            try:
                target = path.resolve()
            except (OSError, RuntimeError):  # a loop
                raise CheckpointError(f"there is no LoRA {name[:64]!r}; ListModels tells which there are") from None
            if target.parent != self.folder:
                raise CheckpointError(f"LoRA {name} is a link out of the folder, which is not followed")
            return target
        return path

    def _present(self) -> list[str]:
        try:
            names = [entry.removesuffix(ENDING) for entry in os.listdir(self.folder) if entry.endswith(ENDING)]
        except OSError:
            return []
        return sorted(name for name in names if _NAME.fullmatch(name))

    def _size(self, name: str) -> int:
        try:
            return os.lstat(self.folder / f"{name}{ENDING}").st_size
        except OSError:
            return 0


def check_folder(folder: Path) -> None:
    """Look for a folder of LoRAs. Errors: CheckpointError where there is none."""
    if not folder.is_dir():
        raise CheckpointError(f"loras: {folder} is no folder")


def _numbers(chosen: Chosen) -> Iterator[tuple[str, str, F32, F32]]:
    """Yield part, layer, A and the weighted B of each pair of all files. Errors: those of LoraFile.read."""
    for file, weight in chosen.files:
        for part, layer, a, b in file.read():
            with np.errstate(over="ignore"):
                b = b * np.float32(weight)
            if not np.isfinite(b).all():
                raise CheckpointError(f"LoRA {file.name}: at weight {weight:g} its numbers for {layer} overflow")
            yield part, layer, a, b


__all__ = ["ENDING", "KEPT", "RANKS", "Chosen", "Listed", "Shelf", "check_folder"]
