"""Same pixels in any company: random mixes through the real server, each picture against the one made alone.

MIXES=200 in the environment, as `make test-all` has it, runs more than the fifteen of `make test`.
"""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engines.backend import Denoiser
from engines.choice import Choice
from engines.generate import generate
from engines.model import Model, load
from latentd import AsyncClient, ServerError
from latentd.v1 import images_pb2 as pb
from pipeline.checkpoint.opened import Checkpoint, open_checkpoint
from pipeline.conditions.interval import Interval
from pipeline.samplers import SAMPLERS
from server.app import Server
from server.upload import original_of
from tests.support.checkpoints import INPAINTING, make_checkpoint
from tests.support.held import Held, wrapped
from tests.support.serving import address, nothing_left, serving
from tests.support.uploads import colours, saved

MIXES = int(os.environ.get("MIXES", "15"))
POISON = "photo photo photo"  # the prompt whose outputs the backend turns into NaN
WORDS = ["the", "red", "blue", "apple", "cat", "photo", "of", "in", "xyz"]


def wish(draw: random.Random, *, masked: bool = False) -> dict[str, Any]:
    """`masked`: of an inpainting model, which takes no request without a picture and a mask."""
    start, end = sorted(draw.sample(range(6), 2))
    asked = {
        "prompt": " ".join(draw.choices(WORDS, k=draw.randint(1, 24))),
        "negative_prompt": draw.choice(["", "blue cat", "red"]),
        "steps": draw.randint(1, 9),
        "guidance": draw.choice([0.0, 1.0, round(draw.uniform(1, 15), 2)]),
        "sampler": draw.choice(list(SAMPLERS)),
        "seed": draw.randrange(2**32),
        "long_prompt": draw.random() < 0.2,
        "clip_skip": draw.choice([0, 0, 1]),
        **draw.choice([{}, {"guidance_start": start / 5, "guidance_end": end / 5}]),
    }
    if masked or draw.random() < 0.4:
        size = draw.choice([(24, 24), (30, 17)])
        asked |= {"init_image": saved(colours(*size)), "fit": draw.choice(["crop", "resize", "pad"])}
        asked["strength"] = draw.choice([1.0, min(1.0, round(draw.uniform(1 / asked["steps"] + 0.001, 1), 3))])
        if masked or draw.random() < 0.5:
            mask = Image.new("L", size)
            mask.paste(255, (draw.randrange(12), draw.randrange(8), draw.randrange(13, 24), 17))
            asked["mask"] = saved(mask)
    return asked


def alone(model: Model, asked: dict[str, Any]) -> np.ndarray:
    """generate's picture of a client's options."""
    asked = dict(asked)
    interval = Interval(asked.pop("guidance_start", 0.0), asked.pop("guidance_end", 1.0))
    if (picture := asked.pop("init_image", None)) is not None:
        size = model.spec.defaults.width, model.spec.defaults.height
        asked["original"] = original_of(picture, asked.pop("mask", None), size, asked.pop("fit"))
    return generate(model, **asked, interval=interval)


async def ask(client: AsyncClient, asked: dict[str, Any], fate: str, hops: int) -> np.ndarray | None:
    """The picture, or None for a request that is cancelled on the way. `hops` turns of the loop before it is sent."""
    for _ in range(hops):
        await asyncio.sleep(0)
    if fate == "cancelled":
        stream = client.stream(**asked)
        async for event in stream:
            if isinstance(event, pb.Started | pb.Step):
                break
        await stream.aclose()
        return None
    if fate == "poisoned":
        with pytest.raises(ServerError, match="image 0 came out as not a number"):
            await client.generate(**{**asked, "prompt": POISON, "long_prompt": False, "clip_skip": 0})
        return None
    (picture,) = await client.generate(**asked)
    return np.asarray(picture.image)


@pytest.mark.parametrize(("backend", "masked"), [("openvino", False), ("onnxruntime", False), ("openvino", True)])
def test_random_mixes_are_bit_identical_to_each_alone(
    checkpoint: Checkpoint, tmp_path: Path, backend: str, masked: bool
) -> None:
    if masked:
        checkpoint = open_checkpoint(make_checkpoint(tmp_path / "inpainting", **INPAINTING))
    model = load(checkpoint, Choice(backend, "f32"))
    held = Held(model.backend)
    poison = model.backend.encode(model.tokenizer.encode(POISON).ids)

    def spoil(denoiser: Denoiser, rows: Any) -> None:
        for row in rows:
            context = denoiser.contexts[row]
            if context.shape == poison.shape and (context == poison).all():
                denoiser.outputs[row] = np.nan

    held.after_run = spoil
    mixes = MIXES // 3 if masked else MIXES
    made = spoiled = cancelled = 0

    async def mix(server: Server, seed: int) -> None:
        nonlocal made, spoiled, cancelled
        draw = random.Random(seed)
        wishes = [wish(draw, masked=masked) for _ in range(draw.randint(2, 7))]
        fates = [draw.choice(["made", "made", "made", "cancelled", "poisoned"]) for _ in wishes]
        client = AsyncClient(address(server))
        try:
            pictures = await asyncio.gather(
                *(ask(client, asked, fate, draw.randint(0, 40)) for asked, fate in zip(wishes, fates, strict=True))
            )
        finally:
            await client.close()
        await asyncio.to_thread(nothing_left, server)  # who was cancelled may step a while, on the same backend
        spoiled, cancelled = spoiled + fates.count("poisoned"), cancelled + fates.count("cancelled")
        for asked, fate, picture in zip(wishes, fates, pictures, strict=True):
            if fate == "made":
                assert (picture == alone(model, asked)).all(), f"mix {seed}: {asked}"
                made += 1

    with serving(wrapped(model, held), seats=4) as server:
        for seed in range(mixes):
            asyncio.run(mix(server, seed))
    assert made > mixes and spoiled > mixes // 3 and cancelled > mixes // 3
