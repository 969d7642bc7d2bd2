"""Twins through the kernels' operations: packed, folded, added in place; and what a twin pass moves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.gpu.subjects import networks
from engines.cuda.kernels import plain_kernels, triton_kernels
from engines.cuda.network import TorchNetwork
from engines.cuda.ops import KernelOps, fold_biases
from model import weights
from model.ops import PLAIN, spread
from model.unet import Unet
from pipeline.checkpoint.opened import Checkpoint
from tests.support.bare import bare_checkpoint
from tests.support.counted import Counted
from tests.support.pairs import grid
from tests.support.unets import CLOSE, SD15, SD21, SDXL, Passes, away, twin_inputs, unet_of, use

SPECS = {"sd15": SD15, "sd21": SD21, "sdxl": SDXL}


@pytest.mark.parametrize(("name", "folded", "rows"), grid(list(SPECS), [False, True], [1, 3]))
@torch.inference_mode()
def test_twins_are_all_rows(name: str, folded: bool, rows: int) -> None:
    """A sum that is added in place must not be one that a skip, or the other twin, still has."""
    spec = SPECS[name]
    net = use(unet_of(spec, torch.float64), KernelOps(Counted(range(4, 161, 4)).kernels))
    if folded:
        fold_biases(net)
    latents, timesteps, context = twin_inputs(spec, rows, 2)
    latents = latents.contiguous(memory_format=torch.channels_last)
    wanted = net(latents.repeat_interleave(2, dim=0), timesteps, context)
    shifts, kv = net.time_shifts(timesteps), net.context_kv(context)
    kept = [x.clone() for x in (latents, *shifts, *kv)]
    for _ in range(2):
        got = net.denoise(latents, shifts, kv, copies=2)
        assert away(got, wanted) < CLOSE
        assert got.is_contiguous(memory_format=torch.channels_last), "as guided_step takes it"
    assert all(torch.equal(x, y) for x, y in zip(kept, (latents, *shifts, *kv), strict=True))


@pytest.mark.parametrize("rows", [1, 2])
def test_a_shared_query_through_the_kernel_itself(rows: int) -> None:
    """In Triton's interpreter: its launcher takes rows of stride 0, and every other row; the bits are the same."""
    generator, ops = torch.Generator().manual_seed(1), KernelOps(triton_kernels())
    q, k, v = (torch.randn(n, t, 64, generator=generator) for n, t in ((rows, 5), (2 * rows, 7), (2 * rows, 7)))
    with torch.inference_mode():
        got = ops.shared_attention(q, k, v, 2, copies=2)
        assert torch.equal(got, ops.attention(spread(q, 2), k, v, 2))
        torch.testing.assert_close(got, PLAIN.shared_attention(q, k, v, 2, copies=2), rtol=0, atol=1e-5)
        assert torch.equal(ops.shared_attention(q, k[::2], v[::2], 2, copies=1), ops.attention(q, k[::2], v[::2], 2))


def test_a_head_that_no_kernel_takes() -> None:
    ops = KernelOps(replace(plain_kernels(), heads=()))
    q, k, v = torch.randn(2, 5, 64), torch.randn(4, 7, 64), torch.randn(4, 7, 64)
    assert torch.equal(ops.shared_attention(q, k, v, 2, copies=2), PLAIN.shared_attention(q, k, v, 2, copies=2))


def test_one_tensor_is_spread_and_nothing_else_is_copied() -> None:
    """Of SD 1.5 at its own size: the residual of the first attention to the text, the one `cat` more."""

    def normed(x: Tensor, *rest: Any, **options: Any) -> Tensor:
        return torch.empty_like(x)

    counted = []
    with torch.device("meta"):
        net = Unet(networks.SD15, KernelOps(replace(plain_kernels(), group_norm_silu=normed, layer_norm=normed)))
        net.half().requires_grad_(False).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        fold_biases(net)
        with torch.inference_mode():
            shifts, kv = net.time_shifts(torch.empty(2)), net.context_kv(torch.empty(2, 77, 768).half())
            for copies in (1, 1, 2):  # the first packs weights
                latents = torch.empty(2 // copies, 4, 64, 64).half().contiguous(memory_format=torch.channels_last)
                with Passes() as passes:
                    net.denoise(latents, shifts, kv, copies)
                counted.append(passes.counts)
    _, whole, twins = counted
    joined = whole["cat"] + whole["stack"]
    assert joined == 12 and twins["cat"] + twins["stack"] == joined + 1
    # The first transformer's own residual is of fewer rows than what its last product gives: an addition, in place.
    assert twins["add_"] - whole["add_"] == 1 == whole["addmm_"] - twins["addmm_"]
    for name in ("add", "copy_", "clone", "_to_copy", "contiguous"):
        assert whole[name] >= twins[name], name


def test_who_has_twins(bare: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> None:
    tokens, unet = bare.spec.text.tokens, weights.load_unet(bare.spec, bare.weights)
    assert TorchNetwork(unet, tokens, twins=True).twins and not TorchNetwork(unet, tokens).twins, "off by default"
    lcm = bare_checkpoint(tmp_path_factory, unet={"time_cond_proj_dim": 32})
    lcm_unet = weights.load_unet(lcm.spec, lcm.weights)
    assert not TorchNetwork(lcm_unet, tokens, twins=True).twins, "a row has its guidance"
    nobody = replace(SD15, attention_down=(False,) * 4, attention_up=(False,) * 4, transformer_layers=(0,) * 4)
    assert not TorchNetwork(unet_of(nobody, torch.float32), tokens, twins=True).twins


@torch.inference_mode()
def test_a_network_takes_half_the_samples(bare: Checkpoint) -> None:
    """Texts and times are of all rows; rows 2k and 2k + 1 are of row k of the samples."""
    spec, text = bare.spec.unet, bare.spec.text
    network = TorchNetwork(weights.load_unet(bare.spec, bare.weights), text.tokens)
    latents, timesteps, _ = twin_inputs(spec, 3, 2)
    samples = latents.float()
    chance = torch.Generator().manual_seed(5)
    contexts = [torch.randn(text.tokens, text.width, generator=chance) for _ in timesteps]
    texts = torch.stack([network.text(context) for context in contexts])
    times = network.time(timesteps, torch.ones(6))
    wanted = network.denoise(samples.repeat_interleave(2, dim=0), times, texts)
    assert away(network.denoise(samples, times, texts), wanted) < 3e-6, "sums in another order"
