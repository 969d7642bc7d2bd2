"""A run: a recipe, phase after phase, in a folder that it can be taken up from at any moment."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, TypeVar

import torch

from model.vae import VaeDecoder, VaeEncoder
from training.assemble.card import card, write_card
from training.assemble.checkpoint import Trained, assemble
from training.assemble.record import keep_record
from training.batches import Captions, Context
from training.data.opened import open_pictures
from training.errors import TrainingError
from training.evaluate.report import evaluate
from training.files import read_tensors, write, write_json, write_tensors
from training.loop import WEIGHTS, Phase, train
from training.networks import new_text, text_spec
from training.ops import multiplies_bfloat16
from training.phases.adapter import Adapter
from training.phases.autoencoder import Autoencoder, whiten
from training.phases.classifier import Classifier, Net
from training.phases.contrastive import Contrastive
from training.phases.denoiser import Denoiser
from training.processes import Processes, check_device
from training.recipe import PhasesRecipe, Recipe
from training.vocabulary import tokenizer_files

_RECIPE, _TOOK, _SCALED = "recipe.json", "took.json", "scaled.safetensors"
_Phase = TypeVar("_Phase", bound=Phase)


def _check_shares(recipe: Recipe, processes: Processes) -> None:
    """Compare every batch with the number of processes now, and not hours later. Errors: TrainingError."""
    for phase in dataclasses.fields(recipe.phases):
        try:
            processes.share(getattr(recipe.phases, phase.name).batch)
        except TrainingError as error:
            raise TrainingError(f"phases.{phase.name}: {error}") from None


class Run:
    """Holds a run's folder, which no other process may have meanwhile."""

    def __init__(self, recipe: Recipe, folder: Path, processes: Processes, say: Callable[[str], None]) -> None:
        """Open the data and write the tokenizer. Errors: TrainingError, also for a folder of another recipe."""
        self.recipe, self.folder, self.processes = recipe, folder, processes
        self.say = say if processes.first else lambda line: None
        torch.set_num_threads(recipe.threads)
        check_device(recipe.device)
        _check_shares(recipe, processes)
        pictures = open_pictures(recipe)
        self._lock = self._claimed(pictures.digest) if processes.first else None
        self._tokenizer = tokenizer_files(pictures.texts(), recipe.data.vocabulary, recipe.text.tokens)
        if processes.first:
            for name, data in self._tokenizer.items():
                write(folder / "tokenizer" / name, data)
        self.say(f"{recipe.data.folder or recipe.data.kind}: {pictures.summary}")
        processes.wait()
        captions = Captions(folder, text_spec(recipe))
        self.context = Context(recipe, folder, pictures, captions, processes, torch.device(recipe.device))
        phases = (getattr(recipe.phases, phase.name) for phase in dataclasses.fields(recipe.phases))
        if any(phase.bfloat16 for phase in phases) and not multiplies_bfloat16(self.context.device):
            self.say("this processor does not multiply bfloat16: every phase computes in float32")

    def _claimed(self, pictures: str) -> IO[str]:
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = (self.folder / ".lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise TrainingError(f"another process trains in {self.folder}") from None
        place = self.folder / _RECIPE
        begun = json.loads(place.read_text(encoding="utf-8")) if place.exists() else {}
        for key, now, what in (
            ("digest", self.recipe.digest, "another recipe"),
            ("pictures", pictures, f"other pictures or captions than {self.recipe.data.folder or 'shapes'} has now"),
        ):
            if begun.get(key, now) != now:
                lock.close()
                raise TrainingError(
                    f"{self.folder} was begun with {what}; give OUT= another folder, or delete that one"
                )
        write_json(place, {"name": self.recipe.name, "digest": self.recipe.digest, "pictures": pictures})
        return lock

    def everything(self) -> Path:
        """Make the checkpoint, from wherever the run is; return its folder. Errors: TrainingError; Interrupted."""
        trained, classifier = self.trained()
        checkpoint = self.folder / self.recipe.name
        if self.processes.first:
            self._finish(checkpoint, trained, classifier)
        self.processes.wait()
        return checkpoint

    def trained(self) -> tuple[Trained, Net | None]:
        """Go through every phase that is not done. Errors: TrainingError; Interrupted."""
        towers = self._phase(lambda: Contrastive(self.context)).net
        vae, scale = self._autoencoder()
        text = new_text(self.recipe)
        text.load_state_dict(towers.text.state_dict(), strict=True)
        denoiser = self._phase(lambda: Denoiser(self.context, text, vae, scale))
        for net in (denoiser.net, towers, *vae):
            net.eval().requires_grad_(False)
        adapter = self._phase(lambda: Adapter(self.context, denoiser.unet, text, towers.vision, vae, scale))
        named = bool(self.context.pictures.things)
        classifier = self._phase(lambda: Classifier(self.context)).net if named else None
        return Trained(towers, *vae, scale, text, denoiser.unet, adapter), classifier

    def close(self) -> None:
        """Let another process have the folder."""
        if self._lock is not None:
            self._lock.close()

    def _phase(self, make: Callable[[], _Phase]) -> _Phase:
        """Train a phase, unless that is done, and note how long it took."""
        phase = make()
        folder = self.folder / phase.name
        if self.processes.first:
            folder.mkdir(exist_ok=True)
        fresh, started = not (folder / WEIGHTS).exists(), time.monotonic()
        try:
            train(phase, folder, self.processes)
        finally:
            if fresh and self.processes.first:
                took = self.took()
                took[phase.name] = took.get(phase.name, 0.0) + (time.monotonic() - started) / 3600
                write_json(self.folder / _TOOK, took)
        if fresh:
            self.say(f"{phase.name}: done after {self.took().get(phase.name, 0):.2f} h in all")
        return phase

    def took(self) -> dict[str, float]:
        """Return the hours of each phase so far."""
        place = self.folder / _TOOK
        return json.loads(place.read_text(encoding="utf-8")) if place.exists() else {}

    def _autoencoder(self) -> tuple[tuple[VaeEncoder, VaeDecoder], float]:
        """Train it, whiten it, measure its scale once, and return it frozen, as the next phases need it."""
        phase = self._phase(lambda: Autoencoder(self.context))
        encoder, decoder = phase.encoder.eval().requires_grad_(False), phase.decoder.eval().requires_grad_(False)
        place = self.folder / phase.name / _SCALED
        if self.processes.first and not place.exists():
            scale = whiten(encoder, decoder, self.context)
            write_tensors(place, phase.net.state_dict(), {"scale": repr(scale)})
            self.say(f"autoencoder: latents are whitened; what is left to scale is {scale:.5f}")
        self.processes.wait()
        weights, note = read_tensors(place)
        phase.net.load_state_dict(weights, strict=True)
        return (encoder, decoder), float(note["scale"])

    def _finish(self, checkpoint: Path, trained: Trained, classifier: Net | None) -> None:
        assemble(checkpoint, self.recipe, trained, self._tokenizer, self.context.pictures)
        self.say(f"{checkpoint}: assembled; it is being judged")
        out = self.folder / "evaluation"
        figures = evaluate(checkpoint, self.recipe, self.context.pictures, classifier, out, self.say)
        size = sum(path.stat().st_size for path in checkpoint.rglob("*.safetensors"))
        record = keep_record(self.folder, checkpoint, tuple(field.name for field in dataclasses.fields(PhasesRecipe)))
        write_card(checkpoint, card(self.recipe, self.context.pictures, figures, self.took(), size, record))
        if (out / "sheet.png").exists():
            write(checkpoint / "sheet.png", (out / "sheet.png").read_bytes())
        for name, value in figures.items():
            self.say(f"  {name}: {value:.4g}" if isinstance(value, float) else f"  {name}: {value}")
