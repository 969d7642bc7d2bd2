"""The OpenVINO backend: choices that are kept, refusals, and rows that do not know their company."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest

from engines import apart, building, devices, store
from engines import openvino as own
from engines.apart import ApartError, NotBegun
from engines.artifact import Artifact
from engines.backend import BackendError
from engines.cache import entries
from engines.cores import available_cores
from engines.openvino import OpenVinoBackend, OpenVinoDenoiser
from engines.openvino_build import OpenVinoBuilder

ROWS = 8


def has_bf16() -> bool:
    return "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def denoiser_of(backend: OpenVinoBackend, rows: int = ROWS) -> OpenVinoDenoiser:
    default = backend.spec.defaults
    return backend.denoiser(default.width, default.height, rows)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the test's own."""
    monkeypatch.setenv("LATENTD_CACHE", str(tmp_path))
    return tmp_path / "engines"


def never(*_: object) -> Any:
    pytest.fail("what the cache has was made again")


@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_a_rows_bits_depend_on_that_row_alone(artifact: Artifact, precision: str) -> None:
    if precision == "bf16" and not has_bf16():
        pytest.skip("this CPU has no bf16 instructions")
    denoiser = denoiser_of(OpenVinoBackend(artifact, precision))
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


def test_rows_that_do_not_run_are_left_alone(artifact: Artifact) -> None:
    denoiser = denoiser_of(OpenVinoBackend(artifact, "f32"))
    denoiser.samples[:], denoiser.contexts[:], denoiser.timesteps[:] = 0.5, 0.5, 100
    denoiser.outputs[:] = 7
    denoiser.run([1, 3])
    assert (denoiser.outputs[[0, 2, 4, 5, 6, 7]] == 7).all()
    assert not (denoiser.outputs[[1, 3]] == 7).any() and np.array_equal(denoiser.outputs[1], denoiser.outputs[3])


def test_denoisers_have_their_own_buffers(artifact: Artifact) -> None:
    backend = OpenVinoBackend(artifact, "f32")
    one, other = denoiser_of(backend, 2), denoiser_of(backend, 2)
    for denoiser, value in ((one, 0.1), (other, 0.9)):
        denoiser.samples[:], denoiser.contexts[:], denoiser.timesteps[:] = value, value, 50
        denoiser.run([0])
    kept = one.outputs[0].copy()
    other.run([0, 1])
    assert np.array_equal(one.outputs[0], kept) and not np.array_equal(other.outputs[0], kept)


def test_results_are_copies(artifact: Artifact) -> None:
    backend = OpenVinoBackend(artifact, "f32")
    ids = np.arange(backend.spec.text.tokens)
    first = backend.encode(ids)
    kept = first.copy()
    assert not np.array_equal(backend.encode(ids[::-1]), kept) and np.array_equal(first, kept)
    latents = np.ones(backend.spec.latent_shape(24, 24), np.float32)
    picture = backend.decode(latents)
    kept = picture.copy()
    backend.decode(-latents)
    assert np.array_equal(picture, kept) and picture.shape == (3, 24, 24)


def test_engines_and_streams_are_kept(artifact: Artifact, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def outputs(backend: OpenVinoBackend) -> list[np.ndarray]:
        denoiser = denoiser_of(backend, 2)
        denoiser.samples[:], denoiser.contexts[:], denoiser.timesteps[:] = 0.3, 0.2, 600
        denoiser.run([0, 1])
        context = backend.encode(np.arange(backend.spec.text.tokens))
        return [denoiser.outputs.copy(), context, backend.decode(denoiser.outputs[0])]

    def stored() -> dict[str, int]:
        return {str(path): path.stat().st_mtime_ns for path in cache.parent.rglob("*") if path.is_file()}

    first = outputs(OpenVinoBackend(artifact, "f32"))
    before = stored()
    assert len(before) == 3 * 2 + 1, "text encoder, UNet and decoder, each with a manifest; the number of streams"
    with monkeypatch.context() as patch:
        patch.setattr(own, "_costs", never)
        patch.setattr(OpenVinoBuilder, "compiled", never)
        again = outputs(OpenVinoBackend(artifact, "f32"))
    assert all(np.array_equal(one, other) for one, other in zip(first, again, strict=True))
    assert stored() == before


@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_one_blob_for_any_number_of_streams(artifact: Artifact, cache: Path, precision: str) -> None:
    """Imported with so many streams it computes the bits of one that was compiled with so many."""
    if precision == "bf16" and not has_bf16():
        pytest.skip("this CPU has no bf16 instructions")
    builder = OpenVinoBuilder(artifact, precision=precision, threads=2)
    default = artifact.spec.defaults
    order = builder.unet(default.width, default.height)
    blob = builder.compiled(order, 1).export_model().getvalue()
    engine = store.Engine(cache, {}, bytearray(blob))
    for streams in (1, 2):
        imported = builder.imported(engine, streams, order)
        assert imported is not None and imported.get_property("NUM_STREAMS") == streams
        outputs = []
        for compiled in (imported, builder.compiled(order, streams)):
            denoiser = OpenVinoDenoiser(compiled, 2)
            denoiser.samples[:] = np.random.default_rng(0).standard_normal(denoiser.samples.shape)
            denoiser.contexts[:], denoiser.timesteps[:] = 0.2, 600
            denoiser.run([0, 1])
            outputs.append(denoiser.outputs)
        assert np.array_equal(*outputs)


def test_a_flipped_byte_is_named_and_built_again(
    artifact: Artifact, cache: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def context() -> np.ndarray:
        return OpenVinoBackend(artifact, "f32").encode(np.arange(artifact.spec.text.tokens))

    wanted = context()
    for name in ("engine", "manifest.json"):
        (path,) = cache.glob(f"*/{name}")
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        caplog.clear()
        assert np.array_equal(context(), wanted)
        (message,) = caplog.messages
        assert message.startswith(f"{path} is damaged") and message.endswith("building it again")
        with monkeypatch.context() as patch:
            patch.setattr(OpenVinoBuilder, "compiled", never)
            context()


def streams_of(backend: OpenVinoBackend) -> list[int]:
    return sorted(streams for name, streams in backend._compiled if "unet" in name)


def test_the_quickest_number_of_streams_wins(artifact: Artifact, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each size has its own choice; the losers' engines are let go."""
    best = 2
    bound: list[int] = []
    bind = OpenVinoBackend._bind

    def spy(self: OpenVinoBackend, width: int, height: int, rows: int, streams: int, *rest: int) -> OpenVinoDenoiser:
        bound.append(streams)
        return bind(self, width, height, rows, streams, *rest)

    monkeypatch.setattr(OpenVinoBackend, "_bind", spy)
    monkeypatch.setattr(own, "_costs", lambda denoisers: {n: 1.0 if n == best else 2.0 for n in denoisers})
    backend = OpenVinoBackend(artifact, "f32", threads=2)
    denoiser_of(backend)
    assert bound == [1, 2, best], "both are tried, and the better one is bound"
    assert streams_of(backend) == [best]
    backend.denoiser(32, 24, 2)
    assert streams_of(backend) == [best, best]
    bound.clear()
    denoiser_of(OpenVinoBackend(artifact, "f32", threads=2))
    assert bound == [best], "the choice was stored"
    bound.clear()
    denoiser_of(OpenVinoBackend(artifact, "f32", threads=1))
    assert bound == [1, 1], "other threads, another choice"


def test_another_lane_of_a_size_is_made_beside_steps_and_measures_nothing(
    artifact: Artifact, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its streams are the first lane's choice; its compiling, keeping and reading again change nobody's bits."""
    for engines in (1, 3):  # the text encoder's; the two lanes' too
        backend, made = OpenVinoBackend(artifact, "f32"), list[OpenVinoDenoiser]()
        assert backend.makes_beside and len(entries(cache)) == engines
        denoiser, default = denoiser_of(backend, 2), backend.spec.defaults
        denoiser.samples[:], denoiser.contexts[:], denoiser.timesteps[:] = 0.3, 0.2, 600
        denoiser.run([0, 1])
        wanted = denoiser.outputs.copy()
        with monkeypatch.context() as patch:
            patch.setattr(own, "_costs", never)
            lane = default.width, default.height, 2, 2
            maker = threading.Thread(target=lambda: made.append(backend.denoiser(*lane)))  # noqa: B023
            maker.start()
            alive = True
            while alive:
                alive = maker.is_alive()  # one more run after the last look
                denoiser.outputs[:] = 0
                denoiser.run([0, 1])
                assert np.array_equal(denoiser.outputs, wanted)
        (other,) = made
        assert other.contexts.shape[1] == 2 * backend.spec.text.tokens
        assert len(set(streams_of(backend))) == 1, "both lanes have as many"


def test_what_a_lane_will_take_is_known_from_earlier_builds(artifact: Artifact, cache: Path) -> None:
    backend, size = OpenVinoBackend(artifact, "f32", threads=1), (artifact.spec.defaults.width,) * 2
    assert (backend.making(*size, 2) or 0) > 0, "the text encoder's build tells something"
    what = {"what": "seconds a byte", "backend": "openvino", "target": "cpu", "network": "unet"}
    devices.remember(devices.this_cpu(), what, 100 / artifact.weight_bytes("unet"))
    assert backend.making(*size, 2) == pytest.approx(100)
    backend.denoiser(*size, 2, chunks=2)
    assert backend.making(*size, 2) == 0 and (backend.making(*size, 3) or 0) > 0
    devices._path(devices.this_cpu()).unlink()
    assert backend.making(*size, 3) is None


def test_an_engines_key(artifact: Artifact, v_artifact: Artifact, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the bits depend on gives another engine."""

    def stored() -> set[str]:
        return {path.name for path in entries(cache)}

    OpenVinoBackend(artifact, "f32", threads=1)
    known = stored()
    OpenVinoBackend(artifact, "f32", threads=1)
    assert stored() == known and len(known) == 1
    for made, threads in ((artifact, 2), (v_artifact, 1)):
        OpenVinoBackend(made, "f32", threads=threads)
        assert len(stored() - known) == 1
        known = stored()
    monkeypatch.setattr(ov, "get_version", lambda: "another")
    OpenVinoBackend(artifact, "f32", threads=1)
    assert len(stored() - known) == 1


def test_a_cache_that_cannot_be_written_costs_only_time(artifact: Artifact, cache: Path) -> None:
    cache.write_bytes(b"a file in the folder's place")
    backend = OpenVinoBackend(artifact, "f32")
    assert np.isfinite(backend.encode(np.arange(backend.spec.text.tokens))).all()


IDS = np.arange(16)  # a prompt of the text encoder of `artifact`


@pytest.fixture
def apart_runs(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Every network is taken for a large one; its jobs, which are done in this process."""
    jobs: list[dict[str, Any]] = []

    def run(function: str, job: dict[str, Any], say: building.Say, **_: Any) -> Any:
        assert function == "engines.building:build_one"
        jobs.append(job)
        return building.build_one(job, say)

    monkeypatch.setattr(own, "_SMALL", 0)
    monkeypatch.setattr(apart, "run", run)
    return jobs


def refusing(monkeypatch: pytest.MonkeyPatch, error: Exception) -> list[None]:
    """Every job apart ends so; how many there were."""
    tries: list[None] = []

    def run(*_: Any, **__: Any) -> Any:
        tries.append(None)
        raise error

    monkeypatch.setattr(apart, "run", run)
    return tries


def test_a_large_network_is_compiled_in_a_process_of_its_own(
    artifact: Artifact, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real one; the bits are those of an engine that was compiled where it is served."""
    wanted = OpenVinoBackend(artifact, "f32").encode(IDS)
    monkeypatch.setenv("LATENTD_CACHE", str(tmp_path / "another"))
    monkeypatch.setattr(own, "_SMALL", 0)
    monkeypatch.setattr(OpenVinoBuilder, "compiled", never)
    assert np.array_equal(OpenVinoBackend(artifact, "f32").encode(IDS), wanted)
    assert len(entries(tmp_path / "another" / "engines")) == 1 == len(entries(cache))


def test_the_other_process_builds_what_was_asked_for(
    artifact: Artifact, cache: Path, apart_runs: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "latentd.cache"):
        backend = OpenVinoBackend(artifact, "auto", threads=1)
    (job,) = apart_runs
    assert (job["precision"], job["maker"]["options"]) == (backend.precision, {"threads": 1})
    assert caplog.messages == ["text_encoder ids 1x16: building"]
    backend.denoiser(32, 24, 2)
    assert [job["network"] for job in apart_runs] == ["text_encoder", "unet"] and len(entries(cache)) == 2


@pytest.mark.parametrize("error", [ApartError("its process was ended by SIGKILL"), ApartError("no such operation")])
def test_what_took_the_other_process_down_is_not_tried_in_this_one(
    error: ApartError, artifact: Artifact, cache: Path, apart_runs: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = refusing(monkeypatch, error)
    monkeypatch.setattr(OpenVinoBuilder, "compiled", never)
    for _ in range(2):
        with pytest.raises(BackendError, match=f"^text_encoder ids 1x16 was not built: {error}$"):
            OpenVinoBackend(artifact, "f32")
    assert len(tries) == 2 and not list(cache.glob(".[nl]*")), "whoever asks next has it tried again"


def test_a_disk_that_fills_up_costs_one_try_an_engine(
    artifact: Artifact,
    cache: Path,
    apart_runs: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tries = refusing(monkeypatch, ApartError("cannot write it: No space left on device", final=True))
    monkeypatch.setattr(own, "_costs", lambda denoisers: dict.fromkeys(denoisers, 1.0))
    backend = OpenVinoBackend(artifact, "f32", threads=2)
    assert np.isfinite(backend.encode(IDS)).all()
    denoiser_of(backend).run([0])  # compiled for one stream, for two, and for those that won
    told = "engine not cached, the next start compiles it again: cannot write it: No space left on device"
    assert len(tries) == 2 and [text for text in caplog.messages if "engine" in text] == [told] * 2
    assert entries(cache) == []


def test_a_cache_that_cannot_be_written_has_nothing_built_for_it(
    artifact: Artifact, cache: Path, apart_runs: list[Any]
) -> None:
    cache.write_bytes(b"a file in the folder's place")
    assert np.isfinite(OpenVinoBackend(artifact, "f32").encode(IDS)).all() and apart_runs == []


def test_without_another_process_it_is_compiled_where_it_is_served(
    artifact: Artifact,
    cache: Path,
    apart_runs: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    refusing(monkeypatch, NotBegun("no process"))
    assert np.isfinite(OpenVinoBackend(artifact, "f32").encode(IDS)).all()
    assert caplog.messages == ["text_encoder ids 1x16 is compiled where it is served: no process"]
    assert len(entries(cache)) == 1, "and kept"


@pytest.mark.parametrize("precision", ["f16", "int8", "", "F32"])
def test_an_unknown_precision(artifact: Artifact, precision: str) -> None:
    with pytest.raises(BackendError, match=f"precision {precision!r} is unknown; openvino does auto, bf16 and f32"):
        OpenVinoBackend(artifact, precision)


def test_a_cpu_without_bf16(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    class OldCore(ov.Core):
        def get_property(self, device: str, name: str) -> Any:  # type: ignore[override]
            known = super().get_property(device, name)
            return [each for each in known if each != "BF16"] if name == "OPTIMIZATION_CAPABILITIES" else known

    monkeypatch.setattr(ov, "Core", OldCore)
    assert OpenVinoBackend(artifact).precision == "f32"
    with pytest.raises(BackendError, match="precision bf16: this CPU has no bf16 instructions; use f32 or auto"):
        OpenVinoBackend(artifact, "bf16")


def test_auto_takes_bf16_where_the_cpu_has_it(artifact: Artifact) -> None:
    assert OpenVinoBackend(artifact).precision == ("bf16" if has_bf16() else "f32")


def test_a_graph_that_openvino_does_not_take(artifact: Artifact, cache: Path, tmp_path: Path) -> None:
    class Broken:
        id, spec, spec_digest, digest = "broken", artifact.spec, artifact.spec_digest, "0" * 64

        def weight_bytes(self, name: str) -> int:
            return 0

        def graph(self, name: str) -> Path:
            path = tmp_path / f"{name}.onnx"
            path.write_bytes(b"not a graph")
            return path

    with pytest.raises(BackendError, match=r"openvino cannot compile .*text_encoder\.onnx"):
        OpenVinoBackend(Broken())  # type: ignore[arg-type]


def test_threads_follow_the_cores(artifact: Artifact) -> None:
    assert OpenVinoBuilder(artifact).threads == available_cores()
