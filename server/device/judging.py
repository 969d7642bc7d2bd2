"""Pictures that a model's towers look at: those that texts are ranked by, and those that a style is taken from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from engines.clip.judge import Judge
from engines.model import Model
from pipeline.arrays import F32, Pixels
from pipeline.conditions.style import Style
from pipeline.errors import InvalidRequest
from server.limits import Limits, checked_text
from server.upload import opaque, read_picture
from server.wish import Wish


class Ranks(NamedTuple):
    """Holds how near pictures are to texts."""

    scores: F32  # [pictures, texts]
    cut: list[bool]  # [texts]: it had more tokens than the judge reads


def judge_for(model: Model, pictures: Sequence[bytes], texts: Sequence[str], limits: Limits) -> Judge:
    """Return the judge of a request that may be ranked. Errors: InvalidRequest naming the field."""
    if model.judge is None:
        raise InvalidRequest(f"{model.id} has no judge to rank by; the server's setting --judge names one", "pictures")
    for field, values, most in (("pictures", pictures, limits.images), ("texts", texts, limits.texts)):
        if not 1 <= len(values) <= most:
            raise InvalidRequest(f"{field} are {len(values)}; they must be 1 to {most}", field)
    for number, text in enumerate(texts):
        checked_text(f"texts[{number}]", text, limits.prompt_characters)
    return model.judge


def ranks_of(stay: Callable[[], None], judge: Judge, pictures: Sequence[bytes], texts: Sequence[str]) -> Ranks:
    """Decode pictures and score them against texts. `stay` is called before each, and ends it with an error of its own.

    Errors: InvalidRequest naming the picture.
    """
    seen, read = [], []
    for number, data in enumerate(pictures):
        stay()
        seen.append(judge.picture(_pixels(f"pictures[{number}]", data)))
    for text in texts:
        stay()
        read.append(judge.text(text))
    return Ranks(judge.scores(seen, read), [judge.cut(text) for text in texts])


def style_of(stay: Callable[[], None], style_image: bytes, wish: Wish, model: Model) -> Style:
    """Decode a picture and return its style, at the weight that the request says. `stay`: as for `ranks_of`.

    Errors: InvalidRequest.
    """
    assert model.styles is not None
    pixels = _pixels("style_image", style_image)
    stay()
    return model.styles.of(pixels, wish.style_weight)


def _pixels(field: str, data: bytes) -> Pixels:
    return np.asarray(opaque(read_picture(field, data)))
