"""Strict loading: every key and every shape of a network is in the checkpoint, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from model.clip import ClipText, ClipVision, TwoTexts
from model.ops import PLAIN, Ops
from model.unet import Unet
from model.vae import VaeDecoder, VaeEncoder, VaeMoments
from pipeline.checkpoint.weights import Shape, Weights
from pipeline.networks import ClipSpec
from pipeline.spec import Spec

_Net = TypeVar("_Net", bound=nn.Module)
Build = Callable[[], _Net]


def load_text(
    spec: Spec | ClipSpec, weights: Weights, dtype: torch.dtype = torch.float32, ops: Ops = PLAIN
) -> ClipText | TwoTexts:
    """Load the text tower, or both, in evaluation mode, without gradients, on the CPU.

    Errors of all six: CheckpointError.
    """
    return _load(lambda: text_network(spec, ops), weights, "text_encoder", dtype)


def text_network(spec: Spec | ClipSpec, ops: Ops = PLAIN) -> ClipText | TwoTexts:
    """Build the network of a spec's text encoders: SDXL's two are one."""
    assert spec.text is not None
    if isinstance(spec, Spec) and spec.text_2 is not None:
        return TwoTexts(spec.text, spec.text_2, ops)
    return ClipText(spec.text, ops)


def load_vision(spec: ClipSpec, weights: Weights) -> ClipVision:
    return _load(lambda: ClipVision(spec.vision), weights, "vision", torch.float32)


def load_unet(spec: Spec, weights: Weights, dtype: torch.dtype = torch.float32, ops: Ops = PLAIN) -> Unet:
    return _load(lambda: Unet(spec.unet, ops), weights, "unet", dtype)


def load_vae_decoder(spec: Spec, weights: Weights, dtype: torch.dtype = torch.float32, ops: Ops = PLAIN) -> VaeDecoder:
    return _load(lambda: VaeDecoder(spec.vae, ops), weights, "vae", dtype, lambda: VaeEncoder(spec.vae))


def load_vae_encoder(spec: Spec, weights: Weights, dtype: torch.dtype = torch.float32, ops: Ops = PLAIN) -> VaeEncoder:
    return _load(lambda: VaeEncoder(spec.vae, ops), weights, "vae", dtype, lambda: VaeDecoder(spec.vae))


def load_vae_moments(spec: Spec, weights: Weights) -> VaeMoments:
    return _load(lambda: VaeMoments(spec.vae), weights, "vae", torch.float32, lambda: VaeDecoder(spec.vae))


def check_weights(spec: Spec, weights: Weights) -> None:
    """Compare the tensors of all four networks with the checkpoint's headers. Errors: CheckpointError."""
    nets = (lambda: text_network(spec)), (lambda: Unet(spec.unet))
    for part, build in zip(("text_encoder", "unet"), nets, strict=True):
        weights.check(part, _shapes(empty(build)))
    vae = _shapes(empty(lambda: VaeDecoder(spec.vae))) | _shapes(empty(lambda: VaeEncoder(spec.vae)))
    weights.check("vae", vae)


def _load(
    build: Build[_Net], weights: Weights, part: str, dtype: torch.dtype, other: Build[nn.Module] | None = None
) -> _Net:
    """Make a network and give it its weights; `other` makes the one that shares the part."""
    net = empty(build)
    shapes = _shapes(net)
    weights.check(part, shapes | (_shapes(empty(other)) if other else {}))
    state = {name: _tensor(weights, part, name, shape).to(dtype, copy=True) for name, shape in shapes.items()}
    net.load_state_dict(state, strict=True, assign=True)
    return net.eval().requires_grad_(False)


def _tensor(weights: Weights, part: str, name: str, shape: Shape) -> Tensor:
    """Return a view of the mapped file, in the type that it has there."""
    tensor = torch.from_numpy(weights.array(part, name, shape))
    return tensor.view(torch.bfloat16) if weights.is_bfloat16(part, name) else tensor


def _shapes(net: nn.Module) -> dict[str, Shape]:
    return {name: tuple(parameter.shape) for name, parameter in net.named_parameters()}


def empty(build: Build[_Net]) -> _Net:
    """Build a network of shapes only, on torch's meta device: no weight is initialised, none has memory."""
    with torch.device("meta"):
        net = build()
    assert not list(net.buffers()), "a buffer would need its own values"
    return net
