"""The captured step, uncaptured, on CPU tensors: against the host stepper, in any company, in every bucket.

What runs here is the function that a GPU captures; that a replay equals it is for `make gpu-check`.
"""

from __future__ import annotations

import functools
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.gpu.subjects.networks import SD15
from engines.cpu.stepper import HostStepper
from engines.cpu.torch import TorchBackend
from engines.cuda.kernels import plain_kernels
from engines.cuda.network import TorchNetwork, bucket_sizes
from engines.cuda.ops import KernelOps, fold_biases
from engines.cuda.stepper import CudaStepper
from engines.cuda.stream import Stream
from engines.model import Model
from engines.seat import Sitting
from model import weights
from model.unet import Unet
from pipeline.arrays import F32
from pipeline.checkpoint.opened import Checkpoint
from pipeline.noise import standard_normal
from pipeline.samplers import SAMPLERS, table
from pipeline.tokenizer import ClipTokenizer
from tests.support.bare import bare_checkpoint
from tests.support.bench import CPU, real_bench, toy_bench
from tests.support.crowd import BATCHED, crowd, poisoned_sit
from tests.support.requests import Request, finish, random_request, sit
from tests.support.toy import SEATS, SHAPE, STEPS, Toy, toy_context, toy_sit


@pytest.mark.parametrize(("exact", "seen"), [(False, 0), (True, 0), (False, 4)], ids=["fast", "exact", "inpainting"])
def test_500_joins_have_the_host_steppers_bits(oracle: Model, exact: bool, seen: int) -> None:
    """Gather, guidance and update are the host's, to the bit, whoever else sits: the network is one without batches."""
    chance = random.Random(5)
    requests = [random_request(chance, sampler) for sampler in SAMPLERS for _ in range(5)]
    host = HostStepper(Toy(seen=seen), SEATS)

    @functools.cache
    def alone(request: Request) -> F32:
        toy_sit(host, 1, oracle, request, seen)
        return finish(host, 1)

    def compare(request: Request, latents: F32) -> None:
        assert np.array_equal(latents, alone(request)), request

    bench = toy_bench(exact, seen=seen)
    before = {name: tensor.data_ptr() for name, tensor in bench.buffers.items()}
    told = crowd(
        bench.stepper,
        11,
        500,
        requests,
        lambda seat, request: toy_sit(bench.stepper, seat, oracle, request, seen),
        lambda seat: poisoned_sit(
            bench.stepper, seat, table(oracle.spec.schedule, "dpmpp_2m", 8), SHAPE, toy_context("")
        ),
        compare,
        oracle,
    )
    assert told["joined"] == 500 and told["finished"] > 300 and told["left"] > 50
    assert told["finished"] > 2 * told["masked"] > 100
    assert set(bench.replays) == set(range(len(bench.captured))), "every bucket has had its turn"
    assert {name: tensor.data_ptr() for name, tensor in bench.buffers.items()} == before, "nothing was rebuilt"


@pytest.mark.parametrize("exact", [False, True], ids=["fast", "exact"])
def test_a_real_unet_in_company(oracle: Model, exact: bool) -> None:
    """Within rounding of the host's rows, one by one; in exact mode, to the bit, what the same stepper gives alone."""
    chance = random.Random(7)
    requests = [random_request(chance, sampler) for sampler in SAMPLERS]
    width, height = oracle.spec.defaults.width, oracle.spec.defaults.height
    host = oracle.backend.stepper(width, height, SEATS)
    assert isinstance(host, HostStepper)
    solo = real_bench(oracle, exact).stepper

    @functools.cache
    def alone(request: Request) -> tuple[F32, F32]:
        for stepper in (host, solo):
            sit(stepper, 1, oracle, request)  # type: ignore[arg-type]
        return finish(host, 1), finish(solo, 1)  # type: ignore[arg-type]

    def compare(request: Request, latents: F32) -> None:
        theirs, own = alone(request)
        assert np.abs(latents - theirs).max() <= BATCHED * np.abs(theirs).max(), request
        if exact:
            assert np.array_equal(latents, own), request

    bench = real_bench(oracle, exact)
    shape, text = oracle.spec.latent_shape(width, height), oracle.spec.text
    context = np.ones((text.tokens, text.width), np.float32)
    told = crowd(
        bench.stepper,
        12,
        40,
        requests,
        lambda seat, request: sit(bench.stepper, seat, oracle, request),  # type: ignore[arg-type]
        lambda seat: poisoned_sit(bench.stepper, seat, table(oracle.spec.schedule, "ddim", 5), shape, context),
        compare,
        oracle,
    )
    assert told["finished"] > 25


def test_a_distilled_unet_gets_its_guidance(tmp_path_factory: pytest.TempPathFactory) -> None:
    """LCM: the guidance is embedded beside the timestep, once a table, and a seat has one row."""
    lcm = bare_checkpoint(tmp_path_factory, unet={"time_cond_proj_dim": 32})
    model = Model(lcm, ClipTokenizer(lcm.source, lcm.spec.text), TorchBackend(lcm, threads=1))
    default = model.spec.defaults
    host, stepper = model.backend.stepper(default.width, default.height, SEATS), real_bench(model, exact=False).stepper
    latents = {}
    for seat, guidance in enumerate((1.5, 8.0)):
        run = table(model.spec.schedule, "lcm", 4)
        noise = standard_normal(3, model.spec.latent_shape(default.width, default.height), draws=1 + run.draws)
        context = model.backend.encode(model.tokenizer.encode("the red apple").ids)
        for each in (host, stepper):
            each.sit(seat, Sitting(run, noise, context, None, guidance))
        assert stepper.rows(seat) == 1
    for _ in range(4):
        host.step([0, 1])
        stepper.step([0, 1])
    for seat in (0, 1):
        latents[seat] = stepper.latents(seat)
        wanted = host.pending_latents(seat).get()
        assert np.abs(latents[seat] - wanted).max() <= BATCHED * np.abs(wanted).max()
    assert np.abs(latents[0] - latents[1]).max() > 100 * BATCHED, "the guidance shows"


@pytest.mark.parametrize("exact", [False, True], ids=["fast", "exact"])
def test_between_joins_a_step_is_replays_and_nothing_else(
    oracle: Model, exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = toy_bench(exact)
    toy_sit(bench.stepper, 0, oracle, Request("a", "b", 1, 8, 4.0, "euler_a"))
    toy_sit(bench.stepper, 3, oracle, Request("c", "", 2, 8, 1.0, "dpmpp_2m"))
    bench.stepper.step([0, 3])  # whose rows are where is written now
    uploads = []
    monkeypatch.setattr(bench.stream, "upload", lambda *told: uploads.append(told))
    monkeypatch.setattr(bench.stream, "fetch", lambda *told: uploads.append(told))
    bench.replays.clear()
    with Recorded() as outside:
        monkeypatch.setattr(bench.stepper, "_replays", {key: lambda: None for key in bench.stepper._replays})
        bench.stepper.step([0, 3])
    assert not uploads and not outside.operations, "the host computes nothing and sends nothing"


class Recorded(TorchDispatchMode):
    """Every operation that torch is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("exact", [False, True], ids=["fast", "exact"])
def test_a_captured_evaluation_neither_reads_back_nor_makes_constants(oracle: Model, exact: bool) -> None:
    """What a capture would refuse, or freeze: a value's way to the host, a tensor from a list, a shape from values."""
    bench = real_bench(oracle, exact)
    sit(bench.stepper, 1, oracle, Request("a", "b", 1, 4, 4.0, "euler_a"))  # type: ignore[arg-type]
    bench.stepper.step([1])
    for run in bench.captured:
        with Recorded() as inside, torch.inference_mode():
            run()
        refused = ("_local_scalar_dense", "lift_fresh", "nonzero", "masked_select", "item", "unique", "_to_copy.device")
        # The plain update indexes with arange, which Triton's kernel has no need of.
        assert not [name for name in inside.operations if any(word in name for word in refused)]
        assert any("conv2d" in name for name in inside.operations), "it was recorded"


def test_an_x_to_begin_with_and_predictions(oracle: Model) -> None:
    """A picture may begin in the middle, from an x of its own; x0 and x are copies."""
    host, stepper = HostStepper(Toy(), SEATS), toy_bench(exact=False).stepper
    run = table(oracle.spec.schedule, "euler", 6, 3)
    x, noise = standard_normal(9, SHAPE)[0], standard_normal(4, SHAPE)
    for each in (host, stepper):
        each.sit(2, Sitting(run, noise, toy_context("a"), toy_context("b"), 3.0, x=x))
    assert stepper.reached(2) == 0 and np.array_equal(stepper.latents(2), x)
    before = stepper.pending_latents(2)
    for each in (host, stepper):
        each.step([2], predict=[2])
    assert np.array_equal(stepper.prediction(2), host.prediction(2)) and np.array_equal(before.get(), x)
    for each in (host, stepper):
        each.step([2])
        each.step([2])
    assert stepper.finished(2) and np.array_equal(stepper.latents(2), host.latents(2))


def test_the_smallest_bucket_that_holds_the_rows_is_replayed(oracle: Model) -> None:
    bench = toy_bench(exact=False)
    keys = list(bench.stepper._replays)
    assert keys == [(0, n, twins) for n in (8, 6, 4, 2) for twins in (False, True)] + [(0, 1, False)], "largest first"
    guided, plain = Request("a", "b", 1, 8, 4.0, "ddim"), Request("a", "b", 1, 8, 1.0, "ddim")
    for seat, request in enumerate((plain, guided, guided, guided)):
        toy_sit(bench.stepper, seat, oracle, request)
    for seats, bucket, twins in (
        ([0], 1, False),
        ([1], 2, True),
        ([0, 1], 4, False),
        ([2, 3], 4, True),
        ([0, 1, 3], 6, False),
        ([1, 2, 3], 6, True),
        ([0, 1, 2, 3], 8, False),
    ):
        bench.replays.clear()
        bench.stepper.step(seats)
        assert bench.replays == {keys.index((0, bucket, twins)): 1}, seats  # type: ignore[arg-type]


def test_a_seat_by_itself_always_has_the_same_form(oracle: Model) -> None:
    bench = toy_bench(exact=True)
    keys = list(bench.stepper._replays)
    assert keys == [(seat, 2, True) for seat in range(SEATS)] + [(seat, 1, False) for seat in range(SEATS)]
    toy_sit(bench.stepper, 0, oracle, Request("a", "b", 1, 8, 4.0, "ddim"))
    toy_sit(bench.stepper, 2, oracle, Request("a", "b", 1, 8, 1.0, "ddim"))
    bench.stepper.step([0, 2])
    assert bench.replays == {keys.index((0, 2, True)): 1, keys.index((2, 1, False)): 1}  # type: ignore[arg-type]


def test_what_is_nobodys_of_twins_computes_a_pair_of_the_first_seat(oracle: Model) -> None:
    """Seats 1 to 5 fill ten of a bucket of twelve rows; of no seat's rows one would be of another picture's latents."""
    bench = toy_bench(exact=False, seats=8)
    for seat in range(1, 6):
        toy_sit(bench.stepper, seat, oracle, Request("a", "b", seat, 8, 4.0, "ddim"))
    bench.stepper._network.buckets = lambda rows: [4, 12, 16]  # type: ignore[method-assign]
    with bench.stream.here():
        bench.stepper._replays = bench.stepper._captured(bench.stepper._packed())
    bench.stepper.step([1, 2, 3, 4, 5])
    assert bench.stepper._live == (0, 12, True)
    assert bench.stepper._layout[:12].tolist() == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 0, 0]


@pytest.mark.parametrize("exact", [False, True], ids=["fast", "exact"])
def test_a_network_without_twins(oracle: Model, exact: bool) -> None:
    """Such as a plan of TensorRT, which has one number of rows; its graphs are those of all rows."""

    class Single(Toy):
        twins = False

        def denoise(self, samples: Tensor, times: Tensor, texts: Tensor) -> Tensor:
            assert len(samples) == len(times) == len(texts)
            return super().denoise(samples, times, texts)

    stream, host = Stream(CPU), HostStepper(Toy(), SEATS)
    stepper = CudaStepper(Single(), plain_kernels(), SHAPE, SEATS, STEPS, stream, stream, exact=exact)
    assert len(stepper._replays) == (2 * SEATS if exact else 5) and not any(key.twins for key in stepper._replays)
    for each in (host, stepper):
        toy_sit(each, 2, oracle, Request("a", "b", 1, 4, 4.0, "ddim"))
        for _ in range(4):
            each.step([2])
    assert np.array_equal(stepper.latents(2), finish(host, 2))


@pytest.mark.parametrize("exact", [False, True], ids=["fast", "exact"])
def test_joining_writes_zeros_into_the_history(oracle: Model, exact: bool) -> None:
    """Whatever a kernel does with coefficients of zero, it meets no NaN."""
    stepper = toy_bench(exact).stepper
    poisoned_sit(stepper, 2, table(oracle.spec.schedule, "dpmpp_3m_sde", 8), SHAPE, toy_context(""))
    for _ in range(5):
        stepper.step([2])
    at, own = stepper._at(2)
    assert not torch.isfinite(at.state[own]).any(dim=(1, 2, 3))[:3].any(), "x, h1 and h2 were not numbers"
    stepper.leave(2)
    toy_sit(stepper, 2, oracle, Request("a", "", 1, 4, 1.0, "dpmpp_2m"))
    assert torch.isfinite(at.state[own]).all()


@pytest.mark.parametrize("rows", [2, 6, 16, 32, 64, 200, 2048])
def test_buckets(rows: int) -> None:
    sizes = bucket_sizes(rows)
    assert sizes == sorted(set(sizes)) and sizes[0] == 1 and sizes[-1] == rows
    for live in range(1, rows + 1):
        idle = min(size for size in sizes if size >= live) - live
        assert idle <= max(1, live // 4)


@pytest.mark.parametrize(("seats", "buckets", "work"), [(8, 9, 73), (16, 13, 177), (64, 21, 801), (1024, 37, 13281)])
def test_start_up_grows_with_the_seats_and_not_with_their_square(seats: int, buckets: int, work: int) -> None:
    """Every bucket is run and captured when a server starts: 1024 seats would have had 265 of them, 263,265 rows."""
    sizes = bucket_sizes(2 * seats)
    assert (len(sizes), sum(sizes)) == (buckets, work)
    assert not any(size % 2 for size in sizes[1:]), "each but the first has twins too"


def test_our_own_bugs_are_assertions(oracle: Model) -> None:
    stepper = toy_bench(exact=False).stepper
    with pytest.raises(AssertionError, match="seat 1 is empty"):
        stepper.step([1])
    toy_sit(stepper, 1, oracle, Request("a", "", 8, 1, 3.0, "ddim"))
    stepper.step([1])
    with pytest.raises(AssertionError, match="seat 1 is finished"):
        stepper.step([1])
    with pytest.raises(AssertionError, match="20 evaluations in seats for 16"):
        run = table(oracle.spec.schedule, "ddim", 20)
        stepper.sit(0, Sitting(run, standard_normal(1, SHAPE), toy_context("")))


def test_the_network_keeps_what_a_step_would_repeat(bare: Checkpoint) -> None:
    """text, time and denoise together are the UNet."""
    unet = weights.load_unet(bare.spec, bare.weights)
    side, text = bare.spec.unet.sample_size, bare.spec.text
    network = TorchNetwork(unet, text.tokens)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, bare.spec.unet.in_channels, side, side, generator=generator)
    contexts = torch.randn(2, text.tokens, text.width, generator=generator)
    timesteps = torch.tensor([3.0, 801.0])
    texts = torch.stack([network.text(context) for context in contexts])
    got = network.denoise(x, network.time(timesteps, torch.ones(2)), texts)
    assert texts.shape == (2, network.text_width)
    torch.testing.assert_close(got, unet(x, timesteps, contexts), rtol=0, atol=1e-5)


def test_stable_diffusion_in_float16_at_its_own_size() -> None:
    """On the meta device: no numbers, but every shape, type and device of what a GPU would capture."""
    meta = Stream(torch.device("meta"))
    with torch.device("meta"):
        unet = Unet(SD15, KernelOps(plain_kernels())).half().requires_grad_(False)
    fold_biases(unet)
    with meta.here():
        network = TorchNetwork(unet.to(memory_format=torch.channels_last), tokens=77, twins=True)
    assert (network.text_width, network.time_width) == (77 * 24_960, 20_160)  # docs/gpu.md has them
    stepper = CudaStepper(network, plain_kernels(), (4, 64, 64), 2, 150, meta, meta, exact=False)
    assert round(stepper._groups[0].nbytes / 2 / 1e6, 1) == 30.2, "MB a seat, for up to 150 steps"
    with Recorded() as inside, meta.here():
        for replay in stepper._replays.values():
            replay()
    assert not [name for name in inside.operations if "_local_scalar_dense" in name or "lift_fresh" in name]


def test_requests_differ() -> None:
    """The oracle of the crowd could tell one request's latents from another's."""
    request = Request("a", "b", 1, 4, 4.0, "euler")
    assert not np.array_equal(toy_context("a"), toy_context("b"))
    assert replace(request, seed=2) != request
