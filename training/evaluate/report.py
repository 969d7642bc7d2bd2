"""Judges a finished checkpoint, and keeps every figure: evaluation.json, evaluation.csv, and sheets to look at."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.batches import in_batches, pixels_of
from training.data.drawn import DrawnPictures
from training.data.sample import Pictures, Sample
from training.draw import Drawing
from training.evaluate import prompts as fixed
from training.evaluate.opened import OpenedJudge, OpenedModel, OpenedStyles, open_model
from training.evaluate.prompts import Prompt
from training.evaluate.verdict import Verdict, Wanted, psnr, verdict
from training.files import write, write_json
from training.phases.classifier import Net
from training.recipe import Recipe
from training.sheet import pictures_of, sheet, write_png

_RECONSTRUCTED, _REAL = 256, 500  # held-out pictures
_SEEDS, _SEEDED = 8, 5  # seeds of a prompt, and such prompts
_STYLE_PICTURES = 4
_PURPOSE = "evaluation"
_AT_ONCE = 64

Figures = dict[str, Any]
# Of which figure of real drawings each is a share: a perfect model has 1, as the classifier errs about both.
_SHARES = {
    "listed things: top1": "one thing: top1",
    "one thing: top1": "one thing: top1",
    "one thing: style": "one thing: style",
    "eight seeds: top1": "one thing: top1",
    "held-out pairs: top5": "one thing: top5",
    "two things on a ground: all right": "two things: all right",
    "style from a picture: style": "one thing: style",
}


@dataclass(frozen=True)
class Evaluation:
    """Holds what is judged and with what."""

    recipe: Recipe
    pictures: Pictures
    model: OpenedModel
    out: Path
    say: Callable[[str], None]

    def drawing(self, seeds: list[int] | int = 1000) -> Drawing:
        return Drawing.of(self.recipe.evaluate, seeds)


def evaluate(
    checkpoint: Path, recipe: Recipe, pictures: Pictures, classifier: Net | None, out: Path, say: Callable[[str], None]
) -> Figures:
    """Judge a checkpoint. Errors: CheckpointError, TrainingError."""
    whole = Evaluation(recipe, pictures, open_model(checkpoint), out, say)
    figures: Figures = {"held-out PSNR of the autoencoder, dB": _reconstruction(whole)}
    figures |= _looks(whole)
    if classifier is not None and isinstance(pictures, DrawnPictures):
        figures |= Judged(whole, pictures, classifier.eval()).figures()
    write_json(out / "evaluation.json", figures)
    rows = [f"{name.replace(',', ';')},{value:.6g}" for name, value in figures.items() if isinstance(value, float)]
    write(out / "evaluation.csv", "\n".join(("figure,value", *rows, "")).encode())
    return figures


def _reconstruction(whole: Evaluation) -> float:
    """Return the mean PSNR of pictures that training never saw, through both halves of the autoencoder."""
    count = min(_RECONSTRUCTED, 2 * _AT_ONCE if not whole.pictures.things else _RECONSTRUCTED)

    @torch.no_grad()
    def some(rows: range) -> Tensor:
        pixels = pixels_of([whole.pictures.held(_PURPOSE, i) for i in rows])
        return psnr(whole.model.decoder(whole.model.encoder(pixels)), pixels)

    return float(in_batches(count, _AT_ONCE, some).mean())


def _looks(whole: Evaluation) -> Figures:
    """Draw the recipe's sheet, and the CLIP score of captions that were held out, beside those of real pictures."""
    judge = OpenedJudge(whole.model)
    named = list(whole.recipe.evaluate.sheet)
    if named:
        drawn = whole.model.draw(named, whole.drawing(7))
        columns = next((n for n in (10, 8, 5) if len(named) % n == 0), 5)
        write_png(whole.out / "sheet.png", sheet(pictures_of(drawn), columns, named, enlarge=2))
    samples = [whole.pictures.held(_PURPOSE, i) for i in range(min(128, whole.recipe.evaluate.prompts))]
    captions = [sample.caption for sample in samples]
    drawn = whole.model.draw(captions, whole.drawing())
    real, others = pixels_of(samples), captions[1:] + captions[:1]
    return {
        "CLIP score of drawn pictures": float(judge.scores(drawn, captions).mean()),
        "CLIP score of real pictures": float(judge.scores(real, captions).mean()),
        "CLIP score of real pictures with other captions": float(judge.scores(real, others).mean()),
    }


class Judged:
    """Judges what a classifier knows the names of."""

    def __init__(self, whole: Evaluation, pictures: DrawnPictures, net: Net) -> None:
        self._whole, self._pictures, self._net = whole, pictures, net
        self._recipe = whole.recipe.evaluate

    def figures(self) -> Figures:
        figures: Figures = {}
        parts = (self._real, self._listed, self._singles, self._seeds, self._held, self._composed, self._styled)
        for part in parts:
            figures |= part()
        real = "classifier, real, "
        for name, of in _SHARES.items():
            if name in figures and (best := figures.get(real + of)):
                figures[f"{name}, over {real}{of}"] = figures[name] / best
        return figures

    def _verdict(self, pictures: Tensor, wanted: list[Wanted]) -> Verdict:
        return verdict(self._net, self._pictures.things, self._pictures.styles, pictures, wanted)

    def _real(self) -> Figures:
        """Judge the classifier itself, on real drawings of other seeds: what a perfect model would be given."""
        pictures, random = self._pictures, range(min(_REAL, 4 * len(self._pictures.pairs)))
        ones = [pictures.single(_PURPOSE, i, *pictures.pairs[i % len(pictures.pairs)]) for i in random]
        several = [s for s in (pictures.held(_PURPOSE, i) for i in range(len(random))) if len(s.things) == 2]
        one = self._verdict(pixels_of(ones), [_wanted(sample) for sample in ones]).mean()
        figures = {f"classifier, real, one thing: {name}": one[name] for name in ("top1", "top5", "style")}
        if several:
            two = self._verdict(pixels_of(several), [_wanted(sample) for sample in several])
            figures["classifier, real, two things: both"] = two.mean()["top1"]
            figures["classifier, real, two things: ground"] = two.mean()["ground"]
            figures["classifier, real, two things: all right"] = _all_right(two)
        return figures

    def _drawn(self, prompts: list[Prompt], file: str) -> Verdict:
        self._whole.say(f"{file}: {len(prompts)} pictures")
        drawn = self._whole.model.draw([prompt.text for prompt in prompts], self._whole.drawing())
        write_png(self._whole.out / f"{file}.png", sheet(pictures_of(drawn), 20, [prompt.text for prompt in prompts]))
        return self._verdict(drawn, [prompt.wanted for prompt in prompts])

    def _listed(self) -> Figures:
        prompts = fixed.listed(self._pictures)
        if not prompts:
            return {}
        said = self._drawn(prompts, "listed")
        return {"listed things: top1": said.mean()["top1"], "listed things: wrong": _missed(prompts, said)}

    def _singles(self) -> Figures:
        prompts = fixed.singles(self._pictures, self._recipe.prompts)
        said = self._drawn(prompts, "singles")
        figures: Figures = {f"one thing: {name}": said.mean()[name] for name in ("top1", "top5", "style")}
        for style in self._pictures.styles:
            rows = [i for i, prompt in enumerate(prompts) if prompt.wanted.style == style]
            figures[f"one thing, {style}: top1"] = float(said.top1[rows].float().mean())
        return {**figures, "one thing: wrong": _missed(prompts, said)}

    def _seeds(self) -> Figures:
        """Draw a few prompts with eight seeds each: they must differ, and stay right."""
        prompts = fixed.singles(self._pictures, _SEEDED)
        texts = [prompt.text for prompt in prompts for _ in range(_SEEDS)]
        drawn = self._whole.model.draw(texts, self._whole.drawing(2000))
        write_png(self._whole.out / "seeds.png", sheet(pictures_of(drawn), _SEEDS, texts))
        said = self._verdict(drawn, [prompt.wanted for prompt in prompts for _ in range(_SEEDS)])
        groups = drawn.unflatten(0, (-1, _SEEDS))
        pairs = list(itertools.combinations(range(_SEEDS), 2))
        between = torch.stack([psnr(groups[:, a], groups[:, b]) for a, b in pairs])
        return {"eight seeds: mean pairwise PSNR, dB": float(between.mean()), "eight seeds: top1": said.mean()["top1"]}

    def _held(self) -> Figures:
        prompts = fixed.held(self._pictures)
        if not prompts:
            return {}
        said = self._drawn(prompts, "held-out")
        return {f"held-out pairs: {name}": said.mean()[name] for name in ("top1", "top5", "style")}

    def _composed(self) -> Figures:
        prompts = fixed.composed(self._pictures, self._recipe.composed)
        if not prompts:
            return {}
        said = self._drawn(prompts, "composed")
        return {
            "two things on a ground: both": said.mean()["top1"],
            "two things on a ground: ground": said.mean()["ground"],
            "two things on a ground: all right": _all_right(said),
        }

    def _styled(self) -> Figures:
        """Draw prompts without a style, each with four pictures that training never saw, in turn of each style."""
        things = [prompt.wanted.things[0] for prompt in fixed.singles(self._pictures, self._recipe.styled)]
        if not things or len(self._pictures.styles) < 2:
            return {}
        wanted, shown = [], []
        for i, thing in enumerate(things):
            for k in range(_STYLE_PICTURES):
                style = self._pictures.styles[k % len(self._pictures.styles)]
                seen = [t for t, s in self._pictures.pairs if s == style and t != thing]
                other = seen[(7 * i + 13 * k) % len(seen)]
                shown.append(self._pictures.single(f"{_PURPOSE} styles", _STYLE_PICTURES * i + k, other, style))
                wanted.append(Wanted((thing,), style))
        texts = [each.things[0] for each in wanted]
        self._whole.say(f"styles: {len(texts)} pictures")
        drawn = OpenedStyles(self._whole.model).draw(texts, pixels_of(shown), self._whole.drawing())
        few = slice(0, 40)
        both = [
            p for pair in zip(pictures_of(pixels_of(shown[few])), pictures_of(drawn[few]), strict=True) for p in pair
        ]
        names = [name for text in texts[few] for name in ("style", text)]
        write_png(self._whole.out / "styles.png", sheet(both, 16, names))
        said = self._verdict(drawn, wanted).mean()
        return {"style from a picture: style": said["style"], "style from a picture: top1": said["top1"]}


def _missed(prompts: list[Prompt], said: Verdict) -> list[str]:
    return [prompt.text for prompt, right in zip(prompts, said.top1.tolist(), strict=True) if not right]


def _all_right(said: Verdict) -> float:
    return float((said.top1 & said.ground).float().mean())


def _wanted(sample: Sample) -> Wanted:
    return Wanted(sample.things, sample.style, sample.ground)
