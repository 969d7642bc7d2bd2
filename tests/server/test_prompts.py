"""Long prompts, weights and clip_skip through the server: each in any company equals the one made alone."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from engines.generate import generate
from engines.model import Model
from latentd import AsyncClient, Client, ServerError
from latentd.v1 import images_pb2 as pb
from tests.support.serving import address, serving

LONG = "red apple blue cat the photo of " * 5
ASKED: list[tuple[str, dict[str, Any]]] = [
    ("the red apple", {}),
    (LONG, {"long_prompt": True}),
    (LONG, {}),
    ("(red:1.6) (apple)", {"prompt_weights": True}),
    ("the red apple", {"clip_skip": 1}),
    ("(blue:0.4) cat " * 9, {"long_prompt": True, "prompt_weights": True, "clip_skip": 1}),
]


def test_any_mix_of_prompts_is_bit_identical_to_each_alone(model: Model) -> None:
    alone = [generate(model, text, "blue", seed=i, steps=4, **options) for i, (text, options) in enumerate(ASKED)]

    async def together(where: str) -> list[np.ndarray]:
        client = AsyncClient(where)
        try:
            answers = await asyncio.gather(
                *(
                    client.generate(text, negative_prompt="blue", seed=i, steps=4, **options)
                    for i, (text, options) in enumerate(ASKED)
                )
            )
        finally:
            await client.close()
        return [np.asarray(answer[0].image) for answer in answers]

    with serving(model, seats=3) as server:
        pictures = asyncio.run(together(address(server)))
    for picture, wanted in zip(pictures, alone, strict=True):
        assert (picture == wanted).all()


def test_what_is_cut_is_told(model: Model) -> None:
    with serving(model) as server, Client(address(server)) as client:
        told = [
            event
            for options in ({}, {"long_prompt": True}, {"long_prompt": True, "prompt": LONG * 4})
            for event in client.stream(**{"prompt": LONG, "negative_prompt": LONG, "steps": 1, **options})
            if isinstance(event, pb.Queued)
        ]
    assert [(event.prompt_cut, event.negative_prompt_cut) for event in told] == [
        (True, True),
        (False, False),
        (True, False),
    ]


def test_bad_prompts_are_refused_by_field_value_and_limit(model: Model) -> None:
    with serving(model) as server, Client(address(server)) as client:
        with pytest.raises(ServerError, match=r"clip_skip is 2; it must be 0 to 1"):
            client.generate("x", clip_skip=2)
        with pytest.raises(ServerError, match=r"a weight of the prompt is 11; it must be -10 to 10"):
            client.generate("(x:11)", prompt_weights=True)
        assert client.generate("(x:11)", steps=1)  # plain text unless asked for
