"""A bank of latents: pictures that are drawn and encoded once, ahead, and read again and again in another order.

Encoding costs 12 CPU milliseconds a picture, and the denoiser's step 19, at the demo model's shape. A bank of a
few hundred thousand pictures is read a few times only, each time with other noise.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from model.vae import VaeEncoder
from training.batches import Context, pixels_of
from training.draws import permuted
from training.files import read_tensors, write_json, write_tensors

_AT_ONCE, _FILE = 64, 16384  # pictures


class Bank:
    """Holds float16 latents [count, C, h, w] and captions, in files of the run that are written one by one."""

    def __init__(self, context: Context, encoder: VaeEncoder, scale: float, count: int) -> None:
        """Encode what is not on the disk yet. Errors: TrainingError."""
        self._context, self._count = context, count
        processes, files = context.processes, [range(f, min(count, f + _FILE)) for f in range(0, count, _FILE)]
        for rows in files[processes.rank :: processes.count]:
            self._fill(encoder, scale, rows)
        processes.wait()
        parts, self._captions = [], list[str]()
        for rows in files:
            place, words = self._places(rows)
            parts.append(read_tensors(place)[0]["latents"])
            self._captions += json.loads(words.read_text(encoding="utf-8"))
        self._latents = torch.cat(parts)

    def _places(self, rows: range) -> tuple[Path, Path]:
        place = self._context.folder / "bank" / f"{rows.start:08d}.safetensors"
        return place, place.with_suffix(".json")

    def _fill(self, encoder: VaeEncoder, scale: float, rows: range) -> None:
        place, words = self._places(rows)
        if not words.exists():
            captions: list[str] = []
            latents = torch.cat([each for each in self._encoded(encoder, scale, rows, captions)])
            write_tensors(place, {"latents": latents.half()})
            write_json(words, captions)  # last: it says that the other is whole

    @torch.no_grad()
    def _encoded(self, encoder: VaeEncoder, scale: float, rows: range, captions: list[str]) -> Iterator[Tensor]:
        starts = range(rows.start, rows.stop, _AT_ONCE)
        for start in tqdm(starts, desc=f"bank {rows.start}", unit="batch", mininterval=10):
            some = range(start, min(rows.stop, start + _AT_ONCE))
            samples = [self._context.pictures.sample("bank", i) for i in some]
            captions += [sample.caption for sample in samples]
            pixels = pixels_of(samples).to(self._context.device)
            yield encoder.distribution(pixels)[0].cpu() * scale

    def read(self, purpose: str, step: int, batch: int) -> tuple[Tensor, list[str]]:
        """Return this process's share of a step's latents and captions."""
        seed, share = self._context.recipe.seed, self._context.processes.share(batch)
        places = [permuted(seed, f"{purpose} bank", step * batch + i, self._count) for i in share]
        return self._latents[places].float(), [self._captions[place] for place in places]
