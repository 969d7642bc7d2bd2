"""A request of the Open Inference Protocol, read into requests in no door's words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.errors import InvalidRequest
from server.doors.oip.inference import inference_pb2 as pb
from server.doors.oip.models import NEGATIVE, PROMPT, SAMPLER, SEED, STEP, Named
from server.doors.oip.tensors import Values, finite, parameter, texts_of, values_of, wanted_of
from server.limits import Limits, within
from server.request import ImageRequest

# What a request says beside the protocol's tensors, as parameters of the whole request.
_PARAMETERS: dict[str, type] = {
    "format": str,
    "quality": int,
    "clip_skip": int,
    "long_prompt": bool,
    "prompt_weights": bool,
    "guidance_start": float,
    "guidance_end": float,
    "strength": float,
    "fit": str,
    "style_weight": float,
    "keep": int,
    "loras": str,  # name:weight, several with commas between them
    "original_size": str,
    "crop": str,
    "target_size": str,
}
_KINDS = {str: "text", int: "a whole number", bool: "true or false", float: "a number"}
_TIMEOUT, _EMPTY_FINAL = "timeout", "triton_enable_empty_final_response"
_MOST_MICROSECONDS = 10**15  # about thirty years


@dataclass(frozen=True)
class Run:
    """Holds pictures of one prompt whose seeds follow one another: what one ImageRequest can say."""

    first: int  # which picture of the whole request is its first
    request: ImageRequest


@dataclass(frozen=True)
class InferRequest:
    """Holds a message that was read."""

    named: Named
    id: str  # the client's, which each answer carries
    runs: list[Run]
    wanted: set[str]  # outputs
    timeout: float | None  # seconds

    @property
    def images(self) -> int:
        """Return how many pictures are delivered."""
        return sum(run.request.keep or run.request.images or 1 for run in self.runs)


def infer_request(message: pb.ModelInferRequest, named: Named, limits: Limits) -> InferRequest:
    """Read a message. Errors: InvalidRequest for what this door alone has; the fields' limits are Wish's."""
    values = values_of(message, named.inputs, limits.images)
    fields, timeout = _parameters(message)
    for tensor in named.inputs:
        if tensor.length is not None and tensor.name in values:
            (fields[tensor.name],) = values[tensor.name]
    if SAMPLER.name in fields:
        (fields["sampler"],) = texts_of("sampler", [fields["sampler"]])
    wanted = wanted_of(message, named.outputs)
    progress = None if named.decoupled and STEP.name in wanted else False
    runs = list(_runs(values, {**fields, "model": named.model, "progress": progress}))
    if len(runs) > 1 and "keep" in fields:
        raise InvalidRequest(
            f"keep is {fields['keep']}; it chooses among pictures of one prompt whose seeds follow one another", "keep"
        )
    return InferRequest(named, message.id, runs, wanted, timeout)


def _runs(values: dict[str, Values], fields: dict[str, Any]) -> Iterator[Run]:
    prompts = texts_of(PROMPT.name, values[PROMPT.name])
    count = len(prompts)
    negatives = _as_many(NEGATIVE.name, values, count)
    if NEGATIVE.name in values:
        negatives = texts_of(NEGATIVE.name, negatives)
    seeds = _as_many(SEED.name, values, count)
    if SEED.name in values:
        for seed in seeds:
            within(SEED.name, seed, 0, 2**32 - 1)

    def follows(first: int, at: int) -> bool:
        return (prompts[at], negatives[at]) == (prompts[first], negatives[first]) and (
            seeds[first] is None or seeds[at] == (seeds[first] + at - first) % 2**32
        )

    first = 0
    for at in range(1, count + 1):
        if at == count or not follows(first, at):
            said = {"prompt": prompts[first], "negative_prompt": negatives[first], "seed": seeds[first]}
            yield Run(first, ImageRequest(**said, images=at - first, **fields))
            first = at


def _as_many(name: str, values: dict[str, Values], count: int) -> Values:
    """Return a tensor that has an element for each picture; Nones where it is absent. Errors: InvalidRequest."""
    found = values.get(name)
    if found is None:
        return [None] * count
    if len(found) != count:
        raise InvalidRequest(f"{name} has {len(found)} elements; prompt has {count}", name)
    return found


def _loras(text: str, most: int = 10_000) -> list[tuple[str, float]]:
    """Read `name:0.8,other`, a text of at most `most` characters. Errors: InvalidRequest.

    Of a longer one the limit on LoRAs would say the same, but 16 MiB of commas take seconds to read.
    """
    if len(text) > most:
        raise InvalidRequest(f"loras has {len(text)} characters; at most {most} are taken", "loras")
    loras = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, colon, weight = part.rpartition(":")
        try:
            loras.append((name, float(weight)) if colon else (part, 1.0))
        except ValueError:
            raise InvalidRequest(f"loras has {part[:64]!r}; it takes name:weight", "loras") from None
    return loras


def _parameters(message: pb.ModelInferRequest) -> tuple[dict[str, Any], float | None]:
    """Return the fields that parameters say, and the seconds that the client gives. Errors: InvalidRequest."""
    fields: dict[str, Any] = {}
    timeout = None
    for name in sorted(message.parameters):
        value = parameter(message.parameters[name])
        if name == _TIMEOUT:
            if not (finite(value) and 0 < value <= _MOST_MICROSECONDS):
                raise InvalidRequest(
                    f"{_TIMEOUT} is {str(value)[:64]}; it takes microseconds, 1 to {_MOST_MICROSECONDS}", _TIMEOUT
                )
            timeout = value / 1e6
        elif name in _PARAMETERS:
            kind = _PARAMETERS[name]
            fits = finite(value) if kind is float else type(value) is kind
            if not fits:
                raise InvalidRequest(f"{name} is {str(value)[:64]!r}; it takes {_KINDS[kind]}", name)
            fields[name] = _loras(value) if name == "loras" else value
        elif name != _EMPTY_FINAL:  # the last answer is never empty, and says that it is the last, whoever asks
            known = ", ".join((*_PARAMETERS, _TIMEOUT))
            raise InvalidRequest(f"{name[:64]!r} is no parameter of this server; there are: {known}")
    return fields, timeout
