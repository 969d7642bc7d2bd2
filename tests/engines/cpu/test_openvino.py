"""The OpenVINO backend: engines of one size and of any, refusals, and rows that do not know their company."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.cpu import openvino as module
from engines.cpu.core import core, has_bf16
from engines.cpu.openvino import OpenVinoBackend, OpenVinoDenoiser
from engines.errors import BackendError
from engines.machine.cores import available_cores
from pipeline.arrays import F32
from pipeline.checkpoint.opened import Checkpoint, open_checkpoint
from tests.support.checkpoints import make_checkpoint

ROWS = 8


def denoiser_of(backend: OpenVinoBackend, rows: int = ROWS) -> OpenVinoDenoiser:
    default = backend.spec.defaults
    return backend.denoiser(default.width, default.height, rows)


@pytest.fixture(scope="module")
def backend(checkpoint: Checkpoint) -> OpenVinoBackend:
    """In f32, of engines that are there: for tests that are not about compiling."""
    return OpenVinoBackend(checkpoint, "f32")


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every network counts as large: one engine of any size."""
    monkeypatch.setattr(module, "_SMALL", 0)


@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_a_rows_bits_depend_on_that_row_alone(checkpoint: Checkpoint, precision: str) -> None:
    if precision == "bf16" and not has_bf16():
        pytest.skip("this CPU has no bf16 instructions")
    denoiser = denoiser_of(OpenVinoBackend(checkpoint, precision))
    chance = np.random.default_rng(0)
    sample = chance.standard_normal(denoiser.samples.shape[1:], dtype=np.float32)
    context = chance.standard_normal(denoiser.contexts.shape[1:], dtype=np.float32)

    def fill(own: int) -> None:
        """Others get other data, as they may have any."""
        denoiser.samples[:] = chance.standard_normal(denoiser.samples.shape)
        denoiser.contexts[:] = 30 * chance.standard_normal(denoiser.contexts.shape)
        denoiser.timesteps[:] = chance.uniform(0, 800, ROWS)
        denoiser.samples[own], denoiser.contexts[own], denoiser.timesteps[own] = sample, context, 333

    fill(0)
    denoiser.run([0])
    wanted = denoiser.outputs[0].copy()
    assert np.isfinite(wanted).all() and wanted.std() > 0.1
    for turn in range(40):
        row = turn % ROWS
        company = {int(other) for other in chance.integers(0, ROWS, turn % 9)}
        fill(row)
        rows = [*company | {row}]
        chance.shuffle(rows)
        denoiser.run(rows)
        assert np.array_equal(denoiser.outputs[row], wanted), (row, rows)


def test_rows_that_do_not_run_are_left_alone(backend: OpenVinoBackend) -> None:
    denoiser = denoiser_of(backend)
    denoiser.samples[:], denoiser.contexts[:], denoiser.timesteps[:] = 0.5, 0.5, 100
    denoiser.outputs[:] = 7
    denoiser.run([1, 3])
    assert (denoiser.outputs[[0, 2, 4, 5, 6, 7]] == 7).all()
    assert not (denoiser.outputs[[1, 3]] == 7).any() and np.array_equal(denoiser.outputs[1], denoiser.outputs[3])


def test_denoisers_have_their_own_buffers(backend: OpenVinoBackend) -> None:
    one, other = denoiser_of(backend, 2), denoiser_of(backend, 2)
    for denoiser, value in ((one, 0.1), (other, 0.9)):
        denoiser.samples[:], denoiser.contexts[:], denoiser.timesteps[:] = value, value, 50
        denoiser.run([0])
    kept = one.outputs[0].copy()
    other.run([0, 1])
    assert np.array_equal(one.outputs[0], kept) and not np.array_equal(other.outputs[0], kept)


def test_results_are_copies(backend: OpenVinoBackend) -> None:
    ids = np.arange(backend.spec.text.tokens)
    first = backend.encode(ids)
    kept = first.copy()
    assert not np.array_equal(backend.encode(ids[::-1]), kept) and np.array_equal(first, kept)
    latents = np.ones(backend.spec.latent_shape(24, 24), np.float32)
    picture = backend.decode(latents)
    kept = picture.copy()
    backend.decode(-latents)
    assert np.array_equal(picture, kept) and picture.shape == (3, 24, 24)


def test_a_large_network_tells_what_a_row_takes_and_a_small_one_is_stepped(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = OpenVinoBackend(checkpoint, "f32")
    small.stepper(24, 24, 2)
    assert small.row_seconds(24, 24, 1) is None
    monkeypatch.setattr(module, "_SMALL", 0)
    large = OpenVinoBackend(checkpoint, "f32")
    assert large.row_seconds(24, 24, 1) is None, "before anything ran"
    large.stepper(24, 24, 2)
    assert 0 < (large.row_seconds(24, 24, 1) or 0) < 10 and large.row_seconds(24, 24, 2) is None


def test_a_steppers_decoder_is_there_with_it(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = OpenVinoBackend(checkpoint, "f32")
    backend.stepper(24, 24, 2)
    monkeypatch.setattr(backend, "_compile", lambda *_: pytest.fail("compiled again"))
    assert backend.decode(np.ones(backend.spec.latent_shape(24, 24), np.float32)).shape == (3, 24, 24)


@pytest.mark.usefixtures("large")
def test_lanes_of_an_engine_of_any_size_know_nothing_of_each_other(checkpoint: Checkpoint) -> None:
    """Three lanes of several rows, interleaved: each output is written in place, with the bits of the lane alone."""
    lanes = [(24, 24, 1), (28, 24, 1), (24, 24, 2)]
    alone = []
    for lane in lanes:
        denoiser = OpenVinoBackend(checkpoint, "f32").denoiser(*lane[:2], 3, lane[2])
        _fill(denoiser)
        denoiser.run(range(3))
        alone.append(denoiser.outputs.copy())
    backend = OpenVinoBackend(checkpoint, "f32")
    together = [backend.denoiser(*lane[:2], 3, lane[2]) for lane in lanes]
    assert len(backend._engines) == 3, "one engine a network"
    for denoiser in together:
        _fill(denoiser)
    for row, denoiser in itertools.product(range(3), together):
        denoiser.run([row])
    for denoiser, wanted in zip(together, alone, strict=True):
        assert np.array_equal(denoiser.outputs, wanted)


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize(
    "precision", [pytest.param("f32", marks=[pytest.mark.exhaustive] if has_bf16() else []), "bf16"]
)
def test_bits_do_not_depend_on_the_order_of_sizes(checkpoint: Checkpoint, precision: str) -> None:
    if precision == "bf16" and not has_bf16():
        pytest.skip("this CPU has no bf16 instructions")
    shapes = [(24, 24, 1), (36, 24, 1), (24, 24, 2), (24, 48, 1)]
    wanted: dict[tuple[int, int, int], list[F32]] = {}
    for order in (shapes, shapes[::-1], [shapes[2], shapes[0], shapes[3], shapes[1]]):
        backend = OpenVinoBackend(checkpoint, precision)
        for width, height, chunks in order + order:
            denoiser = backend.denoiser(width, height, 1, chunks)
            _fill(denoiser)
            denoiser.run([0])
            picture = backend.decode(np.full(backend.spec.latent_shape(width, height), 0.3, np.float32))
            got = [denoiser.outputs[0], picture]
            known = wanted.setdefault((width, height, chunks), got)
            assert all(np.array_equal(a, b) for a, b in zip(got, known, strict=True)), (order, width, height, chunks)


def test_an_engine_of_any_size_computes_what_one_of_one_size_does(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In f32 to 1e-5 of the largest; in bf16 its error against f32 is at most a fifth above that of the static one."""

    def outputs(precision: str, small: int) -> list[F32]:
        monkeypatch.setattr(module, "_SMALL", small)
        backend = OpenVinoBackend(checkpoint, precision)
        denoiser = denoiser_of(backend, 1)
        _fill(denoiser)
        denoiser.run([0])
        return [denoiser.outputs[0], backend.decode(np.full(backend.spec.latent_shape(24, 24), 0.3, np.float32))]

    static = outputs("f32", 1 << 30)
    for one, other in zip(static, outputs("f32", 0), strict=True):
        assert np.abs(one - other).max() <= 1e-5 * np.abs(one).max()
    if has_bf16():
        errors = [
            [float(np.sqrt(np.square(got - wanted).mean())) for got, wanted in zip(each, static, strict=True)]
            for each in (outputs("bf16", 1 << 30), outputs("bf16", 0))
        ]
        assert all(dynamic <= 1.2 * fixed for fixed, dynamic in zip(*errors, strict=True)), errors


FIRST = [(1, 1), (1, 2), (2, 1), (6, 6)]  # in units of sizes
LATER = [(1, 1), (2, 2), (3, 1), (6, 6)]


def _of_sizes(backend: OpenVinoBackend, sizes: list[tuple[int, int]]) -> dict[tuple[int, int], F32]:
    unit, every = backend.spec.size_multiple, {}
    for columns, rows in sizes:
        denoiser = backend.denoiser(columns * unit, rows * unit, 1)
        _fill(denoiser)
        denoiser.run([0])
        every[columns, rows] = denoiser.outputs[0]
    return every


@pytest.fixture(scope="module")
def static(checkpoint: Checkpoint) -> dict[tuple[int, int], F32]:
    """What engines of one size each give, whose order cannot matter."""
    return _of_sizes(OpenVinoBackend(checkpoint, "f32"), sorted({*FIRST, *LATER}))


@pytest.mark.parametrize("first", [FIRST[0], *(pytest.param(size, marks=pytest.mark.exhaustive) for size in FIRST[1:])])
def test_an_engine_of_any_size_that_sees_the_smallest_first(
    first: tuple[int, int],
    checkpoint: Checkpoint,
    static: dict[tuple[int, int], F32],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where the deepest level has one position OpenVINO packs weights that are wrong for all larger ones."""
    monkeypatch.setattr(module, "_SMALL", 0)
    for size, got in _of_sizes(OpenVinoBackend(checkpoint, "f32"), [first, *LATER, first]).items():
        assert np.abs(got - static[size]).max() <= 1e-5 * np.abs(static[size]).max(), size


def test_another_lane_is_made_beside_steps(backend: OpenVinoBackend) -> None:
    lanes: list[OpenVinoDenoiser] = []
    assert backend.makes_beside
    denoiser = denoiser_of(backend, 2)
    _fill(denoiser)
    denoiser.run([0, 1])
    wanted = denoiser.outputs.copy()
    maker = threading.Thread(target=lambda: lanes.append(backend.denoiser(28, 24, 2, 2)))
    maker.start()
    alive = True
    while alive:
        alive = maker.is_alive()  # one more run after the last look
        denoiser.outputs[:] = 0
        denoiser.run([0, 1])
        assert np.array_equal(denoiser.outputs, wanted)
    assert lanes[0].contexts.shape[1] == 2 * backend.spec.text.tokens


@pytest.mark.usefixtures("large")
def test_a_file_that_is_written_to_is_noticed_before_a_new_size_reads_it(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model")
    backend = OpenVinoBackend(open_checkpoint(folder), "f32")
    denoiser = denoiser_of(backend, 1)
    _fill(denoiser)
    denoiser.run([0])
    wanted = denoiser.outputs.copy()
    path = folder / "unet/diffusion_pytorch_model.safetensors"
    with path.open("r+b") as file:
        file.seek(-64, 2)
        file.write(bytes(64))
    with pytest.raises(BackendError, match=r"diffusion_pytorch_model\.safetensors has been written to since"):
        backend.denoiser(28, 24, 1)
    denoiser_of(backend, 1).run([0])
    denoiser.run([0])
    assert np.array_equal(denoiser.outputs, wanted), "sizes that are there go on"


@pytest.mark.usefixtures("large")
def test_a_file_that_is_replaced_or_removed_changes_nothing(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model")
    backend = OpenVinoBackend(open_checkpoint(folder), "f32")
    for path in folder.rglob("*.safetensors"):
        path.unlink()
    denoiser = backend.denoiser(28, 24, 1)
    _fill(denoiser)
    denoiser.run([0])
    assert np.isfinite(denoiser.outputs).all() and denoiser.outputs.std() > 0.1


def _fill(denoiser: OpenVinoDenoiser) -> None:
    chance = np.random.default_rng(5)
    denoiser.samples[:] = chance.standard_normal(denoiser.samples.shape)
    denoiser.contexts[:] = chance.standard_normal(denoiser.contexts.shape)
    denoiser.timesteps[:] = 300


@pytest.mark.parametrize("precision", ["f16", "int8", "", "F32"])
def test_an_unknown_precision(checkpoint: Checkpoint, precision: str) -> None:
    with pytest.raises(BackendError, match=f"precision {precision!r} is unknown; openvino does auto, bf16 and f32"):
        OpenVinoBackend(checkpoint, precision)


def test_a_cpu_without_bf16(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    class OldCpu:
        def get_property(self, device: str, name: str) -> Any:
            return [each for each in core().get_property(device, name) if each != "BF16"]

    monkeypatch.setattr("engines.cpu.core.core", OldCpu)
    assert OpenVinoBackend(checkpoint).precision == "f32"
    with pytest.raises(BackendError, match="precision bf16: this CPU has no bf16 instructions; use f32 or auto"):
        OpenVinoBackend(checkpoint, "bf16")


def test_auto_takes_bf16_where_the_cpu_has_it(checkpoint: Checkpoint) -> None:
    assert OpenVinoBackend(checkpoint).precision == ("bf16" if has_bf16() else "f32")


def test_a_graph_that_openvino_does_not_take(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> Any:
        raise RuntimeError("no such operation")

    monkeypatch.setattr(module, "bound", broken)
    with pytest.raises(BackendError, match=r"openvino cannot compile text_encoder of .*tiny: no such operation"):
        OpenVinoBackend(checkpoint)


def test_threads_follow_the_cores(checkpoint: Checkpoint) -> None:
    assert OpenVinoBackend(checkpoint).identity()["threads"] == available_cores()
    assert OpenVinoBackend(checkpoint, threads=1).identity()["threads"] == 1
