"""The model's card: what it is, how it was made, and every figure that was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from training.assemble.record import FOLDER, Record
from training.data.drawn import DrawnPictures
from training.data.fonts import LICENCES
from training.data.sample import Pictures
from training.files import write
from training.recipe import Recipe


def card(
    recipe: Recipe, pictures: Pictures, figures: dict[str, Any], took: dict[str, float], size: int, record: Record
) -> str:
    """Return the card in Markdown. `took`: hours of each phase; `size`: bytes of weights."""
    data, evaluate = recipe.data, recipe.evaluate
    what = f"Draws pictures of {data.side} x {data.side} pixels."
    if pictures.things:
        what = (
            f"Draws {len(pictures.things)} things in the styles {' and '.join(pictures.styles)}, in {data.side} x "
            f'{data.side} pixels. Name a thing and a style: "{pictures.things[0]}, {pictures.styles[0]} style".'
        )
    widget = "\n".join(f"  - text: {prompt}" for prompt in evaluate.sheet[:10])
    numbers = "\n".join(f"| {name} | {value:.4g} |" for name, value in figures.items() if isinstance(value, float))
    phases = "\n".join(f"| {name} | {hours:.2f} h |" for name, hours in took.items())
    missed = "".join(
        f"\nThese of the {asked} came out wrong: {'; '.join(wrong)}.\n"
        for asked, name in (("listed things", "listed things: wrong"), ("prompts of one thing", "one thing: wrong"))
        if (wrong := figures.get(name))
    )
    made = LICENCES.replace("in this folder", "that it learnt from") if data.kind == "drawn" else ""
    sight, judged = "", "CLIP scores are those of `judge/`, which learnt from the same pictures."
    if isinstance(pictures, DrawnPictures):
        judged = (
            "By a classifier that was trained apart, on prompts that do not depend on the run; its share of right "
            f"answers on real drawings stands there too. {judged}"
        )
        sight = (
            f"Pictures were drawn while it was trained: {data.composed:.0%} of them have two or three things, "
            f"{1 - data.plain:.0%} a coloured ground; of one thing place, size and tilt vary"
            f"{f' in {1 - data.settled:.0%} of the pictures' if data.settled else ''}. {len(pictures.held_pairs)} "
            f"pairs of thing and style were never shown to it; concepts.json lists things and pairs.\n"
        )
    return f"""---
widget:
{widget}
---
# {recipe.name}

{what}

Trained from nothing by latentd (docs/training.md there), by the recipe {recipe.name} with the digest {recipe.digest}.

{sight}
| | |
|---|---|
| layout | diffusers, `StableDiffusionPipeline`; {"fp16" if recipe.half else "fp32"} safetensors, {size / 1e6:.1f} MB |
| text encoder | CLIP text model, {recipe.text.layers} layers, width {recipe.text.width}, {recipe.text.tokens} \
tokens, {data.vocabulary:,} BPE entries |
| UNet | {", ".join(map(str, recipe.unet.channels))} channels, v-prediction |
| VAE | AutoencoderKL, {", ".join(map(str, recipe.vae.channels))} channels |
| beside them | `judge/`, a CLIP model, whose image tower encodes the pictures that `ip_adapter/` takes a style from |
| good defaults | `{evaluate.sampler}`, {evaluate.steps} steps, guidance {evaluate.guidance:g} |

## Measured

{judged}

| figure | |
|---|---|
{numbers}
{missed}
## How it was made

| phase | on a {"GPU" if recipe.device == "cuda" else "CPU"} |
|---|---|
{phases}

{_recorded(record)}
{made}The vocabulary is a subset of CLIP's byte pairs (MIT, OpenAI).
"""


def _recorded(record: Record) -> str:
    lines = [
        f"![curves of the {phase}]({FOLDER}/{phase}-curves.png) [figures]({FOLDER}/{phase}-figures.csv)\n"
        for phase in record.phases
    ]
    lines += [f"![{sheet}]({FOLDER}/{sheet}.webp) {sheet}\n" for sheet in record.sheets]
    return "\n".join(lines)


def write_card(folder: Path, text: str) -> None:
    write(folder / "README.md", text.encode())
