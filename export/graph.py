"""Traces a network to an ONNX graph without weights.

torch traces the network (opset 23: Attention and GroupNormalization stay single nodes), with rows, sides and
context length dynamic. Every parameter is an input, under the network's own name and in its own shape, float32. So no
constant folding can make a transposed copy of one, and no weight needs to be there: the network is built in memory
that nothing writes to or reads.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator

import onnx
import torch
from onnxscript import ir, optimizer

from export.networks import Network
from graphs import ports
from model.weights import empty
from pipeline.networks import ClipSpec
from pipeline.spec import Spec

OPSET = 23


def trace(network: Network, spec: Spec | ClipSpec) -> bytes:
    """Return the ONNX model of `network`, serialised. Specs that shape the network alike give equal bytes."""
    net = empty(lambda: network.build(spec)).to_empty(device="cpu").eval().requires_grad_(False)
    inputs = network.inputs(spec)
    with _quiet():
        program = torch.onnx.export(
            net,
            tuple(example.value for example in inputs),
            dynamo=True,
            opset_version=OPSET,
            optimize=False,
            input_names=[example.name for example in inputs],
            output_names=ports.outputs(network.name, spec),
            dynamic_shapes=tuple(example.dynamic for example in inputs),
            verbose=False,
        )
    assert program is not None
    model = program.model
    for name, parameter in net.named_parameters():
        value = model.graph.initializers.pop(name, None)
        if value is None:  # nothing takes it, as SDXL's first text tower has a layer too many; a checkpoint has it
            value = ir.Value(name=name, shape=ir.Shape(parameter.shape), type=ir.TensorType(ir.DataType.FLOAT))
        assert value.dtype == ir.DataType.FLOAT and value.shape == tuple(parameter.shape)
        value.const_value = None
        model.graph.inputs.append(value)
    optimizer.optimize(model)
    proto = ir.serde.serialize_model(model)
    _name_sides(proto)
    _strip(proto)
    return proto.SerializeToString(deterministic=True)


def _name_sides(proto: onnx.ModelProto) -> None:
    """Name an output's sides as an input's: torch has numbers of its own where an input's is a multiple of them."""
    for value in proto.graph.output:
        for dim, name in zip(value.type.tensor_type.shape.dim[2:], "hw", strict=False):
            if re.fullmatch(r"s\d+", dim.dim_param):
                dim.dim_param = name


def _strip(proto: onnx.ModelProto) -> None:
    """Drop what the tracer notes about the machine (source paths), so that equal models give equal bytes."""
    del proto.metadata_props[:]
    proto.graph.doc_string = proto.doc_string = ""
    del proto.graph.metadata_props[:]
    del proto.graph.value_info[:]
    for part in (*proto.graph.node, *proto.graph.input, *proto.graph.output, *proto.graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    proto.producer_name, proto.producer_version = "latentd", ""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch: progress, warnings of its own making and of a missing torchvision; a user can act on none."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
