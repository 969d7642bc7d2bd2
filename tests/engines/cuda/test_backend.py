"""The CUDA backend on CPU tensors with plain kernels, beside the float32 oracle; and when it is chosen."""

from __future__ import annotations

import importlib
import logging
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from engines import model as choosing
from engines.backend import Ready
from engines.cache import devices
from engines.choice import Choice
from engines.cuda import gpu
from engines.cuda.backend import CudaBackend
from engines.cuda.kernels import plain_kernels
from engines.errors import BackendError, OutOfMemory
from engines.generate import latents_of
from engines.machine import driver
from engines.model import Model, load
from engines.seat import Sitting
from pipeline.arrays import to_pixels
from pipeline.checkpoint.opened import Checkpoint
from pipeline.noise import standard_normal
from pipeline.samplers import table
from tests.support.comparing import error

# Of max|y|, in one pass of a network: float32 in another order of sums; 11 and 8 bits of mantissa.
CLOSE = {"f32": 1e-5, "f16": 1e-2, "bf16": 6e-2}


class OnCpu(CudaBackend):
    """As `load` makes it on a GPU."""

    def __init__(self, checkpoint: Checkpoint, precision: str, threads: int | None, *, pixels: str) -> None:
        super().__init__(checkpoint, precision, threads, pixels=pixels, device="cpu", kernels=plain_kernels())


@pytest.fixture(scope="module", params=CLOSE)
def backend(request: pytest.FixtureRequest, bare: Checkpoint) -> CudaBackend:
    return OnCpu(bare, request.param, None, pixels="fast")


def test_text_is_in_float32_whatever_the_precision(backend: CudaBackend, oracle: Model) -> None:
    ids = oracle.tokenizer.encode("a red apple").ids
    for skip in range(min(3, oracle.spec.text.skips + 1)):
        assert error(backend.encode(ids, skip), oracle.backend.encode(ids, skip)) < CLOSE["f32"]


def test_denoiser(backend: CudaBackend, oracle: Model) -> None:
    default, ids = oracle.spec.defaults, oracle.tokenizer.encode("a red apple").ids
    made = []
    for each in (backend, oracle.backend):
        denoiser = each.denoiser(default.width, default.height, rows=4)
        denoiser.samples[:] = standard_normal(1, denoiser.samples.shape[1:], draws=4)
        denoiser.contexts[:], denoiser.timesteps[:] = oracle.backend.encode(ids), (1, 300, 700, 999)
        denoiser.outputs[:] = 7.0
        denoiser.run([0, 1, 3])
        denoiser.run([])
        made.append(denoiser.outputs)
    assert (made[0][2] == 7.0).all(), "not asked for"
    assert error(*made) < CLOSE[backend.precision]


def test_decode_and_picture_agree(backend: CudaBackend, oracle: Model) -> None:
    shape = oracle.spec.latent_shape(oracle.spec.defaults.width, oracle.spec.defaults.height)
    latents = standard_normal(2, shape)[0]
    decoded = backend.decode(latents)
    assert error(decoded, oracle.backend.decode(latents)) < CLOSE[backend.precision]
    pixels = backend.picture(Ready(latents)).get()
    assert pixels is not None and np.array_equal(pixels, to_pixels(decoded)) and pixels.std() > 5
    assert backend.picture(Ready(latents * np.float32(np.nan))).get() is None
    assert np.array_equal(backend.picture(Ready(latents)).get(), pixels), "the buffers are clean again"  # type: ignore[arg-type]


def test_a_stepper_s_latents_are_decoded_where_they_are(
    backend: CudaBackend, oracle: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    default = oracle.spec.defaults
    stepper = backend.stepper(default.width, default.height, 1, steps=1)
    shape, text = oracle.spec.latent_shape(default.width, default.height), oracle.spec.text
    x = standard_normal(3, shape)[0]
    run = table(oracle.spec.schedule, "ddim", 1)
    context = np.zeros((text.tokens, text.width), np.float32)
    stepper.sit(0, Sitting(run, standard_normal(1, shape), context, x=x))
    pending = stepper.pending_latents(0)
    wanted = backend.picture(Ready(x)).get()
    monkeypatch.setattr(type(pending), "get", None)
    assert np.array_equal(backend.picture(pending).get(), wanted)  # type: ignore[arg-type]


def test_the_oracle_s_trajectory(bare: Checkpoint, oracle: Model) -> None:
    model = Model(bare, oracle.tokenizer, OnCpu(bare, "f32", None, pixels="exact"))
    options = {"seed": 4, "steps": 5, "guidance": 4.0, "sampler": "dpmpp_2m"}
    assert error(latents_of(model, "a cat", "red", **options), latents_of(oracle, "a cat", "red", **options)) < 3e-5


def test_a_precision_that_there_is_not(bare: Checkpoint) -> None:
    with pytest.raises(BackendError, match="precision 'int8' is unknown; torch on a GPU does auto, f16, bf16, f32"):
        OnCpu(bare, "int8", None, pixels="fast")


@pytest.fixture
def with_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "why_not", lambda: "")
    monkeypatch.setattr(gpu, "check_kernels", lambda: None)
    monkeypatch.setattr(choosing, "CUDA", (__name__, OnCpu.__name__, "kernels"))


@pytest.mark.usefixtures("with_gpu")
@pytest.mark.parametrize(
    ("asked", "name", "precision", "pixels"),
    [
        ({}, "torch", "f16", "fast"),
        ({"pixels": "exact", "precision": "bf16"}, "torch", "bf16", "exact"),
        ({"backend": "torch", "device": "cuda"}, "torch", "f16", "fast"),
        ({"backend": "torch", "device": "cpu"}, "torch", "f32", "exact"),
    ],
)
def test_a_gpu_is_taken_unless_another_device_is_asked_for(
    bare: Checkpoint, asked: dict[str, str], name: str, precision: str, pixels: str | None
) -> None:
    backend = load(bare, Choice(threads=1, **asked)).backend  # type: ignore[arg-type]
    assert (backend.name, backend.precision, backend.pixels) == (name, precision, pixels)


@pytest.mark.usefixtures("with_gpu")
@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_a_backend_of_the_cpu_on_a_gpu(checkpoint: Checkpoint, backend: str) -> None:
    with pytest.raises(BackendError, match=f"device cuda: backend {backend} computes on the CPU; torch has the GPU"):
        load(checkpoint, Choice(backend, device="cuda"))
    assert load(checkpoint, Choice(backend, "f32")).backend.name == backend


def test_a_gpu_that_is_not_here(bare: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "_DRIVER", ())
    with pytest.raises(BackendError, match="device cuda: there is no NVIDIA driver here: install it, or start the"):
        load(bare, Choice(device="cuda"))
    for what in ("device", "pixels"):
        with pytest.raises(BackendError, match=f"{what} 'best' is unknown; there are: auto, "):
            load(bare, Choice(**{what: "best"}))  # type: ignore[arg-type]


def test_torch_is_asked_only_where_there_is_a_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []
    real = importlib.import_module
    monkeypatch.setattr(importlib, "import_module", lambda name: asked.append(name) or real(name))
    monkeypatch.setattr(driver, "_DRIVER", (tmp_path / "none",))
    assert not gpu.cuda_here() and not asked
    monkeypatch.setattr(driver, "_DRIVER", (tmp_path / "none", tmp_path))
    assert gpu.cuda_here() == torch.cuda.is_available() and asked == ["engines.cuda.ready"]


def test_a_card_is_known_by_its_driver_too(bare: Checkpoint, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is measured on one driver or torch says nothing of another."""
    file = tmp_path / "version"
    monkeypatch.setattr(driver, "_DRIVER", (file,))
    assert driver.driver_version() == "unknown"
    file.write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (root@host)\n"
        "GCC version:  gcc version 12.3.0 (Ubuntu 12.3.0-1ubuntu1~22.04.2)\n"
    )
    assert driver.driver_version() == "580.95.05"
    backend = OnCpu(bare, "f32", None, pixels="fast")
    assert backend.device_key() == devices.this_cpu()
    backend._device = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    assert backend.device_key() == f"NVIDIA H200, driver 580.95.05, torch {torch.__version__}"


FULL = torch.OutOfMemoryError(
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.65 GiB of which 41.56 MiB is "
    "free. If reserved but unallocated memory is large try setting PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"
)
ROOM = "the GPU's memory is full: 2.00 GiB more was asked for, 41.56 MiB of 23.65 GiB is free; "


def full(*_: object, **__: object) -> None:
    raise FULL


@pytest.mark.parametrize(
    ("where", "told"),
    [
        (
            "engines.cuda.backend.weights.load_unet",
            f"^the weights in f16: {ROOM}free the card .nvidia-smi shows who holds it",
        ),
        ("engines.cuda.stream.Stream.captured", f"^the text encoder: {ROOM}free the card"),
    ],
)
def test_a_load_that_finds_no_room(bare: Checkpoint, monkeypatch: pytest.MonkeyPatch, where: str, told: str) -> None:
    monkeypatch.setattr(where, full)
    with pytest.raises(OutOfMemory, match=told):
        OnCpu(bare, "f16", None, pixels="fast")


@pytest.mark.parametrize("where", ["engines.cuda.stepper.empty_seats", "engines.cuda.stepper.evaluate"])
def test_seats_that_find_no_room(bare: Checkpoint, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """At the start, or of a long prompt later: what was made for them is forgotten, and the others go on."""
    backend = OnCpu(bare, "f32", None, pixels="fast")
    backend.stepper(24, 24, 1, steps=1)
    monkeypatch.setattr("engines.cuda.stream.Stream.captured", lambda stream, run: run() or run)
    with monkeypatch.context() as at_this:
        at_this.setattr(where, full)
        told = (
            f"^3 seats of 24x24 and prompts of 2 x {bare.spec.text.tokens} tokens, jobs of up to 9 steps: {ROOM}"
            r"lower --seats \(it is 3\), --max-steps \(9\) or --sizes, or free the card \(nvidia-smi\)$"
        )
        with pytest.raises(OutOfMemory, match=told):
            backend.stepper(24, 24, 3, 2, steps=9)
        assert list(backend._unets) == [(24, 24, 1, 0)]
    assert backend.stepper(24, 24, 3, 2, steps=9).seats == 3


def test_a_decoder_that_finds_no_room(
    bare: Checkpoint, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    backend, latents = OnCpu(bare, "f32", None, pixels="fast"), np.zeros(bare.spec.latent_shape(32, 24), np.float32)
    with monkeypatch.context() as at_this:
        at_this.setattr("engines.cuda.stream.Stream.captured", full)
        with pytest.raises(OutOfMemory, match=f"^decoding 32x24: {ROOM}lower --seats, --max-steps or --sizes, or free"):
            backend.picture(Ready(latents))
    with caplog.at_level(logging.INFO):
        assert backend.picture(Ready(latents)).get() is not None
    assert any("captured the decoder of 32x24 in " in message for message in caplog.messages)


def test_who_waits_for_a_load_sees_it_move(
    bare: Checkpoint, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        OnCpu(bare, "f32", None, pixels="fast").stepper(24, 24, 2, steps=1)
        OnCpu(bare, "f32", None, pixels="exact").stepper(24, 24, 1, steps=1)
    said = [re.sub(r"\d+\.\d s", "T s", message) for message in caplog.messages]
    load = ["weights are on the device after T s", "captured the text encoder in T s"]
    assert said == [
        *load,
        "capturing the step of 2 seats of 24x24, jobs of up to 1 steps",
        "captured bucket 1 of 3 (rows=4) in T s",
        "captured bucket 2 of 3 (rows=2) in T s",
        "captured bucket 3 of 3 (rows=1) in T s",
        *load,
        "capturing the step of 1 seat of 24x24, jobs of up to 1 steps",
        "captured bucket 1 of 2 (rows=2) in T s",
        "captured bucket 2 of 2 (rows=1) in T s",
    ]
