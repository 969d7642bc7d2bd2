"""Which plans are served, and what is said, in one sentence with the command, when they cannot be."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from engines.__main__ import _parser
from engines.artifact.opened import Artifact
from engines.build.makers import maker_of
from engines.cache import store
from engines.choice import Choice
from engines.commands.build import _chunks, _rows, _sizes, ordered
from engines.cuda import gpu
from engines.errors import BackendError, NoEngine
from engines.machine import toolchain
from engines.model import load
from engines.tensorrt import api
from engines.tensorrt.build.builder import TensorRtBuilder
from engines.tensorrt.serve.plans import Plans
from pipeline.checkpoint.opened import Checkpoint
from pipeline.extras import install
from tests.support.plan_doubles import TARGET, keep_plan, keep_plans


@pytest.fixture(autouse=True)
def store_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTD_CACHE", str(tmp_path))
    monkeypatch.setattr(api, "present_target", lambda: TARGET)


def plans(plain: Artifact) -> Plans:
    return Plans(plain, TensorRtBuilder(plain, TARGET))


def size(plain: Artifact) -> tuple[int, int]:
    return plain.spec.defaults.width, plain.spec.defaults.height


def refused(asked, *arguments) -> str:
    with pytest.raises(NoEngine) as caught:
        asked(*arguments)
    assert caught.value.code == "FAILED_PRECONDITION"
    return str(caught.value)


def command(plain: Artifact, rest: str = "") -> str:
    return f"`make engines MODEL={plain.folder} BACKEND=tensorrt_rtx ARCH={TARGET} PRECISION=f16{rest}`"


def sizes(plain: Artifact) -> str:
    return f" SIZES={size(plain)[0]}x{size(plain)[1]}"


def follow(plain: Artifact, told: str) -> list[Path]:
    """The places of what the command in `told` would build."""
    words = shlex.split(re.findall(r"`make engines (.*?)`", told)[0])
    values = dict(word.split("=", 1) for word in words)
    assert values.pop("MODEL") == str(plain.folder)
    flags = [part for name, value in values.items() for part in (f"--{name.lower()}", value)]
    options = _parser().parse_args(["build", str(plain.folder), *flags])
    builder = maker_of(options.backend, options.attention).make(plain, options.target, options.precision)
    wanted = _rows(options.rows), _sizes(options.sizes, plain.spec), _chunks(options.chunks)
    return [store.place(builder.identity(order)) for order in ordered(builder, *wanted)]


def test_what_there_is(plain: Artifact) -> None:
    keep_plans(plain, [8, 2, 5])
    found = plans(plain)
    assert found.unet_rows(size(plain), 1) == [2, 5, 8]
    assert found.unet(size(plain), 1, 5).manifest["identity"]["shapes"]["timestep"] == [5]
    assert list(found.identities(size(plain))) == [
        "text_encoder",
        *(f"unet of {n} rows" for n in (2, 5, 8)),
        "vae_decoder",
    ]


def test_nothing_was_built(plain: Artifact) -> None:
    asked, (width, height), tokens = plans(plain), size(plain), plain.spec.text.tokens
    backend = f"for {TARGET}, backend tensorrt_rtx; run"
    told = refused(asked.text_encoder)
    assert told == f"there is no plan of text_encoder {backend} {command(plain)} to build it"
    told = refused(asked.vae_decoder, (width, height))
    rest = sizes(plain)
    assert told == f"there is no plan of vae_decoder for {width}x{height} {backend} {command(plain, rest)} to build it"
    what = f"unet for 2, 4 or 8 rows of {width}x{height} and {tokens} tokens"
    rest = f" ROWS=2,4,8{sizes(plain)}"
    told = refused(asked.unet_rows, (width, height), 1)
    assert told == f"there is no plan of {what} {backend} {command(plain, rest)} to build it"
    rest += " CHUNKS=3"
    what = f"unet for 2, 4 or 8 rows of {width}x{height} and {3 * tokens} tokens"
    told = refused(asked.unet_rows, (width, height), 3)
    assert told == f"there is no plan of {what} {backend} {command(plain, rest)} to build it"


def test_the_command_builds_what_is_missing(plain: Artifact) -> None:
    builder, asked = TensorRtBuilder(plain, TARGET), plans(plain)
    for chunks in (1, 2):
        places = follow(plain, refused(asked.unet_rows, size(plain), chunks))
        for order in builder.orders([2, 4, 8], [size(plain)], chunks):
            assert store.place(builder.identity(order)) in places
    (place,) = keep_plans(plain, [6])[1:2]
    (place / "engine").write_bytes(b"a plan of somebody")
    assert place in follow(plain, refused(asked.unet, size(plain), 1, 6))


def test_a_command_with_our_attention(plain: Artifact) -> None:
    builder = maker_of("tensorrt_rtx").make(plain, TARGET, "f32")
    identity = {**builder.identity(builder.orders([4], [size(plain)])[1]), "backend": "tensorrt", "attention": "triton"}
    from engines.build.words import command as told

    rest = f"ARCH={TARGET} PRECISION=f32 ROWS=4{sizes(plain)} ATTENTION=triton"
    assert told(plain, identity) == f"make engines MODEL={plain.folder} BACKEND=tensorrt {rest}"


@pytest.mark.parametrize("network", ["text_encoder", "unet", "vae_decoder"])
@pytest.mark.parametrize("file", ["engine", "manifest.json"])
def test_a_damaged_plan(plain: Artifact, network: str, file: str) -> None:
    places = dict(zip(("text_encoder", "unet", "vae_decoder"), keep_plans(plain, [2]), strict=True))
    path = places[network] / file
    path.write_bytes(path.read_bytes().replace(b"a", b"b", 1))
    asked = {
        "text_encoder": lambda: plans(plain).text_encoder(),
        "unet": lambda: plans(plain).unet(size(plain), 1, 2),
        "vae_decoder": lambda: plans(plain).vae_decoder(size(plain)),
    }
    rest = {"text_encoder": "", "unet": f" ROWS=2{sizes(plain)}", "vae_decoder": sizes(plain)}[network]
    told = refused(asked[network])
    assert told.startswith(f"{path} is ") and told.endswith(f"; run {command(plain, rest)} to build it again")
    for other in asked.keys() - {network}:
        asked[other]()


def test_plans_of_another_card(plain: Artifact) -> None:
    for target in ("sm_120", "sm_86"):
        for order in (builder := TensorRtBuilder(plain, target)).orders([2], [size(plain)]):
            keep_plan(plain, builder, order)
    for asked, arguments in ((plans(plain).text_encoder, ()), (plans(plain).unet_rows, (size(plain), 1))):
        told = refused(asked, *arguments)
        assert (
            f" for {TARGET}, the GPU that is here: those in the cache are for sm_120, sm_86; run `make engines " in told
        )


def test_plans_of_another_version(plain: Artifact) -> None:
    """The same card and shapes, and still another engine: what differs is said."""
    keep_plans(plain, [2], version="1.6.0.8", onnx="1.19.0", typing={"method": 0})
    told = refused(plans(plain).unet_rows, size(plain), 1)
    assert "the one in the cache is another (version 1.6.0.8, here 1.7." in told
    assert ", onnx 1.19.0, here 1." in told and ", typing differs); run `make engines " in told


def here(monkeypatch: pytest.MonkeyPatch, *missing: str) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(gpu, "why_not", lambda: "")
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if name in missing else real("json" if "tensorrt" in name else name),
    )


@pytest.mark.parametrize(
    ("backend", "missing", "extra"),
    [
        ("tensorrt", "tensorrt", "gpu"),
        ("tensorrt", "torch", "gpu"),
        ("tensorrt_rtx", "tensorrt_rtx", "export,kernels,rtx"),
        ("tensorrt_rtx", "triton", "export,kernels,rtx"),
    ],
)
def test_a_missing_extra(
    bare: Checkpoint, backend: str, missing: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here(monkeypatch, missing)
    told = f"backend {backend} needs {missing}, which is not installed: {install(*extra.split(','))}"
    with pytest.raises(BackendError, match=re.escape(told)):
        load(bare, Choice(backend))


def test_what_cannot_be_served(bare: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "why_not", lambda: "the card is busy")
    with pytest.raises(BackendError, match="backend tensorrt_rtx runs its plans on an NVIDIA GPU: the card is busy$"):
        load(bare, Choice("tensorrt_rtx"))
    with pytest.raises(BackendError, match="device cpu: backend tensorrt_rtx runs its plans on an NVIDIA GPU only"):
        load(bare, Choice("tensorrt_rtx", device="cpu"))
    for backend in ("auto", "torch", "openvino", "tensorrt_rtx"):
        told = f"attention triton: only plans of backend tensorrt can have it, not {backend}"
        with pytest.raises(BackendError, match=told):
            load(bare, Choice(backend, attention="triton"))
    with pytest.raises(BackendError, match="attention 'fast' is unknown; there are: native, triton"):
        load(bare, Choice("tensorrt", attention="fast"))


def test_a_server_without_plans_does_not_start(
    bare: Checkpoint, plain: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a server loads it: the first thing that is missing is told, with its command."""
    from engines.cuda.backend import device_named

    monkeypatch.setattr(gpu, "why_not", lambda: "")
    monkeypatch.setattr(toolchain, "check_toolchain", lambda: None)
    monkeypatch.setattr("engines.tensorrt.serve.backend.artifact_of", lambda checkpoint: plain)
    monkeypatch.setattr("engines.tensorrt.serve.backend.device_named", lambda name: device_named("cpu"))
    with pytest.raises(NoEngine, match="there is no plan of text_encoder for sm_89, backend tensorrt_rtx; run `make "):
        load(bare, Choice("tensorrt_rtx"))
