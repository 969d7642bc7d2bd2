"""Finds the parts of a network that float16 is too narrow for, by running it on the CPU, and the types for them.

An operation is part of an island if anything that it reads, computes inside or writes comes within HEADROOM of
float16's largest number. So a large value stays in the wide type from where it is made to where something (a
normalisation, as a rule) has made it small again; nothing is decided by name. Islands are bfloat16 where the target
has it and the emulated error says that its 8 bits cost next to nothing, else float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import onnx
from onnx import ModelProto, NodeProto

from engines.artifact.opened import Artifact
from engines.errors import BackendError
from engines.tensorrt.notes import Notes
from engines.tensorrt.types.emulation import emulate, largest_error
from engines.tensorrt.types.ranges import Ranges, measure
from engines.tensorrt.types.samples import sampled_side, samples
from engines.tensorrt.types.typed import LARGEST, sinusoids, stored_weights, typed

METHOD = 1  # raise it when what follows would come out otherwise: it is part of an engine's identity
HEADROOM = 8.0  # how much larger values may be with other prompts, seeds and sizes than those measured
_EMULATED = 1  # of the samples: an emulation costs three times a plain run
_BF16_COST = 2.0  # bfloat16 islands may have so many times the error of float32 ones


@dataclass(frozen=True)
class Island:
    """An operation that float16 is too narrow for, and the measurement that says so."""

    output: str  # the node, by its first output
    operator: str
    weight: str  # of the checkpoint, by which a reader finds the place; "" where it has none
    largest: float  # magnitude
    where: str  # "output", "input", "logits" (of attention, a bound) or "weight"


@dataclass(frozen=True)
class Study:
    islands: list[Island]
    errors: dict[str, float]  # of the whole network, emulated, against float32: by the islands' type
    side: int  # pixels of the pictures that it was run for

    def island_type(self, bf16: bool) -> str:
        """Return the type that the islands compute in on a target with or without bfloat16."""
        return "bf16" if bf16 and self.errors["bf16"] <= _BF16_COST * self.errors["f32"] else "f32"


def study(artifact: Artifact, network: str, notes: Notes) -> Study:
    """Measure a network, once: at full SD 1.5 width it takes minutes on two cores. Errors: BackendError."""
    what = {"what": "float16 ranges", "artifact": artifact.digest, "network": network, "method": METHOD}
    if (known := notes.recall(**what)) is not None:
        return Study([Island(**island) for island in known["islands"]], known["errors"], known["side"])
    path = artifact.graph(network)
    model = onnx.load(path, load_external_data=False)
    feeds = samples(artifact, network)
    ranges = measure(model, path.parent, feeds)
    islands = find(model, ranges)
    errors = {}
    for kind in ("f32", "bf16") if islands else ("f32",):
        graph = typed(model, "f16", {island.output: kind for island in islands})
        errors[kind] = largest_error(emulate(graph, path.parent, feeds[:_EMULATED]), ranges.outputs[:_EMULATED])
    if not math.isfinite(errors["f32"]):
        raise BackendError(
            f"{network} of {artifact.folder} is not finite in float16, even with {len(islands)} islands; "
            "build it with precision bf16 or f32"
        )
    if not islands:
        errors["bf16"] = errors["f32"]
    result = Study(islands, errors, sampled_side(artifact))
    notes.remember(asdict(result), **what)
    return result


def find(model: ModelProto, ranges: Ranges, headroom: float = HEADROOM) -> list[Island]:
    """Return the operations of a float32 graph that come within `headroom` of float16's largest number, in order."""
    limit = LARGEST["f16"] / headroom
    weights, waves = stored_weights(model.graph), sinusoids(model.graph)
    islands = []
    for node in model.graph.node:
        if node.output[0] in weights or node.output[0] in waves:
            continue
        worst = max(_magnitudes(node, ranges, weights, headroom), default=(0.0, "output"))
        if worst[0] > limit:
            largest, where = worst
            named = next((name for name in node.input if name in weights or name in ranges.stored), "")
            if where == "weight":
                largest *= headroom
            islands.append(Island(node.output[0], node.op_type, named, float(f"{largest:.4g}"), where))
    return islands


def _magnitudes(
    node: NodeProto, ranges: Ranges, weights: dict[str, str], headroom: float
) -> Iterator[tuple[float, str]]:
    """Yield the magnitudes that pass through a node. A weight never changes, so it needs no headroom."""
    for name in node.output:
        if name in ranges.tensors:
            yield ranges.tensors[name], "output"
    for name in node.input:
        if name in weights or name in ranges.stored:
            yield ranges.tensors.get(name, 0.0) / headroom, "weight"
        elif name in ranges.tensors:
            yield ranges.tensors[name], "input"
    if node.output[0] in ranges.logits:
        yield ranges.logits[node.output[0]], "logits"
