"""Backend tensorrt_rtx on CPU tensors, its plans computed by torch through the addresses that they were bound to.

Everything but TensorRT's own runtime is what a GPU would run: the plans' choice from the store, their buffers, the
step over them, and how they share memory.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engines.artifact.opened import Artifact
from engines.backend import Ready
from engines.cache import devices, store
from engines.commands import compare
from engines.cpu.stepper import HostStepper
from engines.cpu.torch import TorchBackend
from engines.cuda.kernels import plain_kernels
from engines.cuda.stream import Stream
from engines.generate import latents_of
from engines.model import Model
from engines.seat import Sitting
from engines.tensorrt import api
from engines.tensorrt.serve.backend import TensorRtRtxBackend
from engines.tensorrt.serve.network import PlanNetwork
from pipeline.arrays import F32, to_pixels
from pipeline.checkpoint.opened import open_checkpoint
from pipeline.conditions.sizes import AS_IT_IS, Sizes
from pipeline.noise import standard_normal
from pipeline.samplers import SAMPLERS, table
from pipeline.tokenizer import ClipTokenizer, tokenizer_of
from tests.support.bare import bare_checkpoint, plain_artifact
from tests.support.comparing import error
from tests.support.crowd import BATCHED, crowd, poisoned_sit
from tests.support.plan_doubles import TARGET, Engines, keep_plans
from tests.support.requests import Request, finish, random_request, sit
from tests.support.sdxl import make_sdxl

SEATS = 4
ROWS = (2, 4)
CLOSE = 1e-5  # of max|y|: the same float32 modules, in batches of another size


@pytest.fixture(autouse=True)
def store_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTD_CACHE", str(tmp_path))
    monkeypatch.setattr(api, "present_target", lambda: TARGET)
    monkeypatch.setattr("engines.tensorrt.serve.backend.artifact_of", plain_artifact)  # nothing is exported


def backend_of(artifact: Artifact, pixels: str = "fast", engines: Engines | None = None) -> TensorRtRtxBackend:
    load = engines or Engines(artifact)
    checkpoint = open_checkpoint(artifact.folder)
    return TensorRtRtxBackend(checkpoint, pixels=pixels, device="cpu", kernels=plain_kernels(), load=load)


def size_of(artifact: Artifact) -> tuple[int, int]:
    return artifact.spec.defaults.width, artifact.spec.defaults.height


@pytest.mark.parametrize("pixels", ["fast", "exact"])
def test_50_joins_in_company(plain: Artifact, oracle: Model, pixels: str) -> None:
    """Within rounding of the host's rows one by one; in exact mode the same bits as alone."""
    keep_plans(plain, ROWS)
    engines, size = Engines(plain), size_of(plain)
    backend = backend_of(plain, pixels, engines)
    host, stepper, solo = (each.stepper(*size, SEATS, steps=8) for each in (oracle.backend, backend, backend))
    assert isinstance(host, HostStepper)
    chance = random.Random(7)
    requests = [random_request(chance, sampler) for sampler in SAMPLERS]

    @functools.cache
    def alone(request: Request) -> tuple[F32, F32]:
        for each in (host, solo):
            sit(each, 1, oracle, request)  # type: ignore[arg-type]
        return finish(host, 1), finish(solo, 1)  # type: ignore[arg-type]

    def compare(request: Request, latents: F32) -> None:
        theirs, own = alone(request)
        assert np.abs(latents - theirs).max() <= BATCHED * np.abs(theirs).max(), request
        assert pixels == "fast" or np.array_equal(latents, own), request

    shape, text = plain.spec.latent_shape(*size), plain.spec.text
    context = np.ones((text.tokens, text.width), np.float32)
    told = crowd(
        stepper,  # type: ignore[arg-type]
        12,
        50,
        requests,
        lambda seat, request: sit(stepper, seat, oracle, request),  # type: ignore[arg-type]
        lambda seat: poisoned_sit(stepper, seat, table(oracle.spec.schedule, "ddim", 5), shape, context),  # type: ignore[arg-type]
        compare,
        oracle,
    )
    assert told["joined"] == 50 and told["finished"] > 30
    # Two guided rows of a seat need no plan but that of two, which is then the only one in memory.
    assert {engine.rows for engine in engines.of("unet")} == ({2, 4} if pixels == "fast" else {2})
    assert all(engine.runs for engine in engines.of("unet"))


@pytest.mark.parametrize(
    ("sizes", "rows", "buckets"),
    [
        ((2, 4, 8), 16, [2, 4, 8, 10, 12, 16]),
        ((2, 4, 8), 8, [2, 4, 8]),
        ((8, 2), 2, [2]),
        ((8,), 2, [2]),
        ((3,), 8, [3, 6, 8]),
        ((1,), 3, [1, 2, 3]),
    ],
)
def test_plans_make_up_buckets(sizes: tuple[int, ...], rows: int, buckets: list[int]) -> None:
    network = PlanNetwork(sizes, pytest.fail, guided=False, context_size=6)
    assert network.buckets(rows) == buckets
    for live in range(1, rows + 1):
        parts = network.parts(live)
        assert sum(parts) >= live and sum(parts[:-1]) < live and set(parts) <= set(sizes)
        assert sorted(parts, reverse=True) == parts, "a smaller plan runs after the larger ones"
    assert network.parts(rows)[0] <= max(sizes)
    if sizes == (2, 4, 8):
        assert [network.parts(n) for n in (3, 6, 9, 12)] == [[4], [8], [8, 2], [8, 4]]


@pytest.mark.parametrize("rows", [(2,), (2, 4), (1, 8)])
def test_the_backend_is_the_oracle(plain: Artifact, oracle: Model, rows: tuple[int, ...]) -> None:
    """Text, UNet, decoder and a whole trajectory, whatever plans there are for the UNet."""
    keep_plans(plain, rows)
    backend, size = backend_of(plain), size_of(plain)
    assert (backend.name, backend.precision, backend.pixels) == ("tensorrt_rtx", "f16", "fast")
    ids = oracle.tokenizer.encode("a red apple").ids
    for skip in range(plain.spec.text.skips + 1):
        assert error(backend.encode(ids, skip), oracle.backend.encode(ids, skip)) < CLOSE
    made = []
    for each in (backend, oracle.backend):
        denoiser = each.denoiser(*size, rows=5)
        denoiser.samples[:] = standard_normal(1, denoiser.samples.shape[1:], draws=5)
        denoiser.contexts[:], denoiser.timesteps[:] = oracle.backend.encode(ids), (1, 300, 600, 700, 999)
        denoiser.run([0, 1, 3, 4])
        made.append(denoiser.outputs)
    assert error(*made) < CLOSE
    latents = standard_normal(2, plain.spec.latent_shape(*size))[0]
    decoded = backend.decode(latents)
    assert error(decoded, oracle.backend.decode(latents)) < CLOSE
    assert np.array_equal(backend.picture(Ready(latents)).get(), to_pixels(decoded))  # type: ignore[arg-type]
    model, options = Model(oracle.checkpoint, oracle.tokenizer, backend), {"seed": 4, "steps": 3, "guidance": 4.0}
    assert error(latents_of(model, "a cat", "red", **options), latents_of(oracle, "a cat", "red", **options)) < 3e-5


def test_a_distilled_unet_gets_its_guidance(tmp_path_factory: pytest.TempPathFactory) -> None:
    lcm = bare_checkpoint(tmp_path_factory, unet={"time_cond_proj_dim": 32})
    keep_plans(plain_artifact(lcm), [2])
    oracle = Model(lcm, ClipTokenizer(lcm.source, lcm.spec.text), TorchBackend(lcm, threads=1))
    model = Model(lcm, oracle.tokenizer, backend_of(plain_artifact(lcm)))
    options = {"seed": 4, "steps": 2, "sampler": "lcm"}
    found = [latents_of(model, "a cat", guidance=guidance, **options) for guidance in (1.5, 8.0)]
    assert error(found[1], latents_of(oracle, "a cat", guidance=8.0, **options)) < 3e-5
    assert np.abs(found[0] - found[1]).max() > 1e-3, "the guidance shows"


def test_sdxl_s_plans_get_both_texts_and_the_sizes(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(make_sdxl(tmp_path / "sdxl"))
    keep_plans(plain_artifact(checkpoint), [2, 4])
    tokenizer = tokenizer_of(checkpoint.source, checkpoint.spec)
    oracle = Model(checkpoint, tokenizer, TorchBackend(checkpoint, threads=1))
    model = Model(checkpoint, tokenizer, backend_of(plain_artifact(checkpoint)))
    options: dict[str, Any] = {"seed": 4, "steps": 2, "guidance": 4.0, "clip_skip": 1}
    found = [latents_of(model, "a cat", sizes=sizes, **options) for sizes in (AS_IT_IS, Sizes(crop=(8, 0)))]
    assert error(found[0], latents_of(oracle, "a cat", **options)) < 3e-5
    assert np.abs(found[0] - found[1]).max() > 1e-3, "the sizes show"


def test_memory_is_shared_where_nothing_runs_at_once(plain: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans are there before their bucket's capture, which on a GPU is after runs that warm it up."""

    def warmed(stream: Stream, run: Callable[[], None]) -> Callable[[], None]:
        with stream.here():
            run()
        return run

    monkeypatch.setattr(Stream, "captured", warmed)
    keep_plans(plain, (1, 2, 4))
    wide = plain.spec.defaults.width + plain.spec.size_multiple, plain.spec.defaults.height
    keep_plans(plain, (2,), [wide])
    engines = Engines(plain)
    backend = backend_of(plain, engines=engines)
    for size in (size_of(plain), wide):
        backend.stepper(*size, seats=2, steps=2)
        backend.decode(np.zeros(plain.spec.latent_shape(*size), np.float32))
    assert [engine.rows for engine in engines.of("unet")] == [4, 2, 1, 2], "the largest first"
    assert len({engine.lent[0][0] for engine in engines.of("unet")}) == 1, "of one stream"
    assert len({engine.lent[0][0] for engine in engines.of("vae_decoder")}) == 1
    assert len({engine.lent[0][0] for engine in engines.made}) == 3, "three streams"
    assert all(len(engine.lent) == 1 for engine in engines.made)
    lane = backend.stepper(*size_of(plain), seats=1, steps=2)
    assert len(engines.of("unet")) == 4 and lane, "the same plans again"


def test_what_rtx_compiled_is_there_at_the_next_start(plain: Artifact, caplog: pytest.LogCaptureFixture) -> None:
    """Machine code: what is damaged is compiled again."""
    keep_plans(plain, [2])
    latents = np.zeros(plain.spec.latent_shape(*size_of(plain)), np.float32)
    known = []
    for start in range(3):
        engines = Engines(plain)
        backend = backend_of(plain, engines=engines)
        backend.decode(latents)
        known.append({engine.network: engine.known for engine in engines.made})
        kept = sorted(devices.folder().glob("*.compiled"))
        assert len(kept) == 2
        if start == 1:
            kept[0].write_bytes(kept[0].read_bytes().replace(b"of ", b"OF "))
    whole = {"text_encoder": b"of text_encoder, 1 rows", "vae_decoder": b"of vae_decoder, 1 rows"}
    assert known[0] == dict.fromkeys(whole, b"") and known[1] == whole
    assert [known[2][name] in (b"", whole[name]) for name in whole] == [True, True] and b"" in known[2].values()
    (told,) = (message for message in caplog.messages if "is damaged" in message)
    assert told == f"{kept[0]} is damaged (its SHA-256 is another); compiling again"


def test_a_long_prompt_has_plans_of_its_own(plain: Artifact, oracle: Model) -> None:
    keep_plans(plain, [2])
    keep_plans(plain, [2], chunks=2)
    engines, size = Engines(plain), size_of(plain)
    backend = backend_of(plain, engines=engines)
    context = np.concatenate([oracle.backend.encode(oracle.tokenizer.encode(text).ids) for text in ("a cat", "red")])
    made = []
    for each in (oracle.backend, backend):
        stepper = each.stepper(*size, 1, chunks=2, steps=2)
        noise = standard_normal(5, plain.spec.latent_shape(*size))
        stepper.sit(0, Sitting(table(plain.spec.schedule, "ddim", 2), noise, context, context * np.float32(0.5), 3.0))
        for _ in range(2):
            stepper.step([0])
        made.append(stepper.pending_latents(0).get())
    assert error(made[1], made[0]) < BATCHED
    assert {engine.inputs[2]["shape"][1] for engine in engines.of("unet")} == {2 * plain.spec.text.tokens}


def test_a_check_writes_each_plan_s_errors(plain: Artifact, oracle: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every plan against torch in float32; what was measured is the card's, by name, driver and torch."""
    keep_plans(plain, ROWS)
    backend = backend_of(plain)
    monkeypatch.setattr(backend, "device_key", lambda: "NVIDIA H200, driver 580.95.05, torch 2.13.0")
    told: list[compare.Finding] = []
    assert compare.compare(
        Model(oracle.checkpoint, oracle.tokenizer, backend), oracle, size_of(plain), ["euler"], 2, told.append
    )
    manifests = [manifest for _, manifest in store.manifests()]
    trajectory, points = "euler, 2 steps: latents", (1, 500, 999)
    for manifest in manifests:
        network, shapes = manifest["identity"]["network"], manifest["identity"]["shapes"]
        own = {network}
        if network == "unet":
            own = {trajectory, *(f"unet of {shapes['timestep'][0]} rows, timestep {t}" for t in points)}
        assert manifest["errors"].keys() == own and all(0 <= value < 1e-4 for value in manifest["errors"].values())
        assert manifest["checked"]["device"] == backend.device_key()
    assert len(manifests) == 2 + len(ROWS)
    what = {"what": "rows", "size": list(size_of(plain)), "rows": 8, "weights": ""}
    what |= {"backend": "tensorrt_rtx", "precision": "f16", **backend.identity()}
    assert devices.recall(backend.device_key(), what) in (True, False)
    assert devices.recall(devices.this_cpu(), what) is None


def test_identity_says_what_bits_depend_on(plain: Artifact) -> None:
    keep_plans(plain, [2])
    told: dict[str, Any] = backend_of(plain, "exact").identity()
    assert told["attention"] == "native" and told["pixels"] == "exact" and told["torch"] == torch.__version__
    assert told["version"].startswith("1.7.")
