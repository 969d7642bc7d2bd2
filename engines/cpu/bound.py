"""A graph with the weights of a checkpoint bound in memory, for OpenVINO.

Each weight is an input of the graph; it becomes a constant over the mapped file, so that the compiler packs what it
needs straight from there and nothing else is ever copied.
"""

from __future__ import annotations

import numpy as np
import openvino as ov
from openvino import opset13 as ops
from openvino.preprocess import PrePostProcessor

import graphs
from engines.graphs import graph_of
from graphs import ports, wire
from pipeline.checkpoint.clip import Clip
from pipeline.checkpoint.opened import Checkpoint
from pipeline.loras.layers import merged
from pipeline.networks import ClipSpec
from pipeline.spec import Spec

# What OpenVINO calls a Convert that decompresses weights (ov::Decompression). Without it a Convert of a constant is
# folded into a constant of float32: an SD 1.5 UNet of float16 then takes 5.05 GB instead of 1.77 and compiles in 11.4 s
# instead of 3.4.
_MARK = "decompression_0"
# Bytes. Engines use tensors so small in place (biases, norms; the towers of CLIP, which compute in float32, also
# larger ones and their tables) instead of packing them. Copied, they do not change when somebody writes to the file.
_SMALL, _SMALL_OF_TEXT = 16 << 10, 300 << 10


def bound(core: ov.Core, checkpoint: Checkpoint | Clip, network: str) -> ov.Model:
    """Read the graph of `network` and bind the weights of its part: float32 arithmetic over the types as stored.

    Its shapes are inferred when the caller reshapes it, and not here before: that takes 54 ms for SD 1.5's UNet with
    Python's lock held, while health has to answer. reshape lets go of it.

    The checkpoint must live as long as the model and what is compiled of it: they read its mapped files.
    Errors: those of engines.graphs.graph_of.
    """
    data, part = graph_of(network, checkpoint.spec), graphs.part_of(network)
    model = core.read_model(data)
    shapes, weights = wire.weights(data), checkpoint.weights
    in_float32 = network in graphs.TOWERS
    small = _SMALL_OF_TEXT if in_float32 else _SMALL
    added_to = _added_to(checkpoint.spec) if network == "unet" else ()
    for parameter in model.get_parameters():
        name = parameter.get_friendly_name()
        if name not in shapes:
            continue
        array = weights.array(part, name, shapes[name])
        if weights.is_bfloat16(part, name):
            tensor = ov.Tensor(array, ov.Shape(array.shape), ov.Type.bf16)
        else:
            tensor = ov.Tensor(array, shared_memory=True)
        in_place = (in_float32 and "embedding" in name) or (name in added_to and array.dtype == np.float32)
        shared = array.nbytes > small and weights.is_mapped(part, name) and not in_place
        value = ops.constant(tensor, shared_memory=shared)
        value.set_friendly_name(name)
        if array.dtype != np.float32:
            value = ops.convert(value, "f32")
            value.get_rt_info()[_MARK] = ""
        parameter.output(0).replace(value.output(0))
        model.remove_parameter(parameter)
    return model


def _added_to(spec: Spec | ClipSpec) -> set[str]:
    """Return the UNet's weights to which the graph itself adds B A.

    To an engine such a one is no weight, and it packs nothing: of float32 it would read the file in each step, of other
    types it makes a copy.
    """
    if not isinstance(spec, Spec) or not spec.unet.adapted:
        return set()
    return {f"{layer}.weight" for layer in merged(spec.unet)}


def taking_bfloat16(model: ov.Model, spec: Spec) -> ov.Model:
    """Return a UNet whose LoRAs come in bfloat16, as it computes: from float32 each run would round them anew.

    What comes out is the same, bit for bit.
    """
    adapters = {port.name for port in ports.adapters(ports.adapted_layers("unet", spec))}
    if not adapters:
        return model
    prepared = PrePostProcessor(model)
    for number, port in enumerate(model.inputs):
        if port.any_name in adapters:  # by number: by name it takes 3 s for 768 of them, so 1 ms
            prepared.input(number).tensor().set_element_type(ov.Type.bf16)
    return prepared.build()
