"""Same pixels in any company: random mixes through the real server, each picture against the one made alone.

MIXES=200 in the environment, as `make test-all` has it, runs more than the fifteen of `make test`.
"""

from __future__ import annotations

import asyncio
import os
import random
from typing import Any

import numpy as np
import pytest

from engines.backend import Denoiser
from engines.choice import Choice
from engines.generate import generate
from engines.model import load
from latentd import AsyncClient, ServerError
from latentd.v1 import images_pb2 as pb
from pipeline.checkpoint.opened import Checkpoint
from pipeline.samplers import SAMPLERS
from tests.support.held import Held, wrapped
from tests.support.serving import address, serving

MIXES = int(os.environ.get("MIXES", "15"))
POISON = "photo photo photo"  # the prompt whose outputs the backend turns into NaN
WORDS = ["the", "red", "blue", "apple", "cat", "photo", "of", "in", "xyz"]


def wish(draw: random.Random) -> dict[str, Any]:
    return {
        "prompt": " ".join(draw.choices(WORDS, k=draw.randint(1, 24))),
        "negative_prompt": draw.choice(["", "blue cat", "red"]),
        "steps": draw.randint(1, 9),
        "guidance": draw.choice([0.0, 1.0, round(draw.uniform(1, 15), 2)]),
        "sampler": draw.choice(list(SAMPLERS)),
        "seed": draw.randrange(2**32),
        "long_prompt": draw.random() < 0.2,
        "clip_skip": draw.choice([0, 0, 1]),
    }


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


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_random_mixes_are_bit_identical_to_each_alone(checkpoint: Checkpoint, backend: str) -> None:
    model = load(checkpoint, Choice(backend, "f32"))
    held = Held(model.backend)
    poison = model.backend.encode(model.tokenizer.encode(POISON).ids)

    def spoil(denoiser: Denoiser, rows: Any) -> None:
        for row in rows:
            context = denoiser.contexts[row]
            if context.shape == poison.shape and (context == poison).all():
                denoiser.outputs[row] = np.nan

    held.after_run = spoil
    made = spoiled = cancelled = 0

    async def mix(where: str, seed: int) -> None:
        nonlocal made, spoiled, cancelled
        draw = random.Random(seed)
        wishes = [wish(draw) for _ in range(draw.randint(2, 7))]
        fates = [draw.choice(["made", "made", "made", "cancelled", "poisoned"]) for _ in wishes]
        client = AsyncClient(where)
        try:
            pictures = await asyncio.gather(
                *(ask(client, asked, fate, draw.randint(0, 40)) for asked, fate in zip(wishes, fates, strict=True))
            )
        finally:
            await client.close()
        spoiled, cancelled = spoiled + fates.count("poisoned"), cancelled + fates.count("cancelled")
        for asked, fate, picture in zip(wishes, fates, pictures, strict=True):
            if fate == "made":
                alone = generate(model, **asked)
                assert (picture == alone).all(), f"mix {seed}: {asked}"
                made += 1

    with serving(wrapped(model, held), seats=4) as server:
        for seed in range(MIXES):
            asyncio.run(mix(address(server), seed))
    assert made > MIXES and spoiled > MIXES // 3 and cancelled > MIXES // 3
