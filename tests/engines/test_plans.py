"""Which plans are served, and what is said, in one sentence with the command, when they cannot be."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from engines import gpu, store, tensorrt_api, toolchain
from engines.__main__ import _parser
from engines.artifact import Artifact
from engines.backend import BackendError, NoEngine
from engines.builders import maker_of
from engines.command import ordered
from engines.model import load
from engines.plans import Plans
from engines.tensorrt_build import TensorRtBuilder
from tests.engines.plan_doubles import TARGET, keep_plan, keep_plans


@pytest.fixture(autouse=True)
def store_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTD_CACHE", str(tmp_path))
    monkeypatch.setattr(tensorrt_api, "present_target", lambda: TARGET)


def plans(bare: Artifact) -> Plans:
    return Plans(bare, TensorRtBuilder(bare, TARGET))


def size(bare: Artifact) -> tuple[int, int]:
    return bare.spec.defaults.width, bare.spec.defaults.height


def refused(asked, *arguments) -> str:
    with pytest.raises(NoEngine) as caught:
        asked(*arguments)
    assert caught.value.code == "FAILED_PRECONDITION"
    return str(caught.value)


def command(bare: Artifact, rest: str = "") -> str:
    return f"`make engines MODEL={bare.folder} BACKEND=tensorrt_rtx ARCH={TARGET} PRECISION=f16{rest}`"


def sizes(bare: Artifact) -> str:
    return f" SIZES={size(bare)[0]}x{size(bare)[1]}"


def follow(bare: Artifact, told: str) -> list[Path]:
    """The places of what the command in `told` would build."""
    words = shlex.split(re.findall(r"`make engines (.*?)`", told)[0])
    values = dict(word.split("=", 1) for word in words)
    assert values.pop("MODEL") == str(bare.folder)
    flags = [part for name, value in values.items() for part in (f"--{name.lower()}", value)]
    options = _parser().parse_args(["build", str(bare.folder), *flags])
    builder = maker_of(options.backend, options.attention).make(bare, options.target, options.precision)
    return [store.place(builder.identity(order)) for order in ordered(options, bare, builder)]


def test_what_there_is(bare: Artifact) -> None:
    keep_plans(bare, [8, 2, 5])
    found = plans(bare)
    assert found.unet_rows(size(bare), 1) == [2, 5, 8]
    assert found.unet(size(bare), 1, 5).manifest["identity"]["shapes"]["timestep"] == [5]
    assert list(found.identities(size(bare))) == [
        "text_encoder",
        *(f"unet of {n} rows" for n in (2, 5, 8)),
        "vae_decoder",
    ]


def test_nothing_was_built(bare: Artifact) -> None:
    asked, (width, height), tokens = plans(bare), size(bare), bare.spec.text.tokens
    backend = f"for {TARGET}, backend tensorrt_rtx; run"
    told = refused(asked.text_encoder)
    assert told == f"there is no plan of text_encoder {backend} {command(bare)} to build it"
    told = refused(asked.vae_decoder, (width, height))
    rest = sizes(bare)
    assert told == f"there is no plan of vae_decoder for {width}x{height} {backend} {command(bare, rest)} to build it"
    what = f"unet for 2, 4 or 8 rows of {width}x{height} and {tokens} tokens"
    rest = f" ROWS=2,4,8{sizes(bare)}"
    told = refused(asked.unet_rows, (width, height), 1)
    assert told == f"there is no plan of {what} {backend} {command(bare, rest)} to build it"
    rest += " CHUNKS=3"
    what = f"unet for 2, 4 or 8 rows of {width}x{height} and {3 * tokens} tokens"
    told = refused(asked.unet_rows, (width, height), 3)
    assert told == f"there is no plan of {what} {backend} {command(bare, rest)} to build it"


def test_the_command_builds_what_is_missing(bare: Artifact) -> None:
    builder, asked = TensorRtBuilder(bare, TARGET), plans(bare)
    for chunks in (1, 2):
        places = follow(bare, refused(asked.unet_rows, size(bare), chunks))
        for order in builder.orders([2, 4, 8], [size(bare)], chunks):
            assert store.place(builder.identity(order)) in places
    (place,) = keep_plans(bare, [6])[1:2]
    (place / "engine").write_bytes(b"a plan of somebody")
    assert place in follow(bare, refused(asked.unet, size(bare), 1, 6))


def test_a_command_with_our_attention(bare: Artifact) -> None:
    builder = maker_of("tensorrt_rtx").make(bare, TARGET, "f32")
    identity = {**builder.identity(builder.orders([4], [size(bare)])[1]), "backend": "tensorrt", "attention": "triton"}
    from engines.builders import command as told

    rest = f"ARCH={TARGET} PRECISION=f32 ROWS=4{sizes(bare)} ATTENTION=triton"
    assert told(bare, identity) == f"make engines MODEL={bare.folder} BACKEND=tensorrt {rest}"


@pytest.mark.parametrize("network", ["text_encoder", "unet", "vae_decoder"])
@pytest.mark.parametrize("file", ["engine", "manifest.json"])
def test_a_damaged_plan(bare: Artifact, network: str, file: str) -> None:
    places = dict(zip(("text_encoder", "unet", "vae_decoder"), keep_plans(bare, [2]), strict=True))
    path = places[network] / file
    path.write_bytes(path.read_bytes().replace(b"a", b"b", 1))
    asked = {
        "text_encoder": lambda: plans(bare).text_encoder(),
        "unet": lambda: plans(bare).unet(size(bare), 1, 2),
        "vae_decoder": lambda: plans(bare).vae_decoder(size(bare)),
    }
    rest = {"text_encoder": "", "unet": f" ROWS=2{sizes(bare)}", "vae_decoder": sizes(bare)}[network]
    told = refused(asked[network])
    assert told.startswith(f"{path} is ") and told.endswith(f"; run {command(bare, rest)} to build it again")
    for other in asked.keys() - {network}:
        asked[other]()


def test_plans_of_another_card(bare: Artifact) -> None:
    for target in ("sm_120", "sm_86"):
        for order in (builder := TensorRtBuilder(bare, target)).orders([2], [size(bare)]):
            keep_plan(bare, builder, order)
    for asked, arguments in ((plans(bare).text_encoder, ()), (plans(bare).unet_rows, (size(bare), 1))):
        told = refused(asked, *arguments)
        assert (
            f" for {TARGET}, the GPU that is here: those in the cache are for sm_120, sm_86; run `make engines " in told
        )


def test_plans_of_another_version(bare: Artifact) -> None:
    """The same card and shapes, and still another engine: what differs is said."""
    keep_plans(bare, [2], version="1.6.0.8", onnx="1.19.0", typing={"method": 0})
    told = refused(plans(bare).unet_rows, size(bare), 1)
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
    bare: Artifact, backend: str, missing: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here(monkeypatch, missing)
    told = f"backend {backend} needs {missing}, which is not installed: pip install -e '.[{extra}]' in a clone"
    with pytest.raises(BackendError, match=re.escape(told)):
        load(bare, backend)


def test_what_cannot_be_served(bare: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "why_not", lambda: "the card is busy")
    with pytest.raises(BackendError, match="backend tensorrt_rtx runs its plans on an NVIDIA GPU: the card is busy$"):
        load(bare, "tensorrt_rtx")
    with pytest.raises(BackendError, match="device cpu: backend tensorrt_rtx runs its plans on an NVIDIA GPU only"):
        load(bare, "tensorrt_rtx", device="cpu")
    for backend in ("auto", "torch", "openvino", "tensorrt_rtx"):
        told = f"attention triton: only plans of backend tensorrt can have it, not {backend}"
        with pytest.raises(BackendError, match=told):
            load(bare, backend, attention="triton")
    with pytest.raises(BackendError, match="attention 'fast' is unknown; there are: native, triton"):
        load(bare, "tensorrt", attention="fast")


def test_a_server_without_plans_does_not_start(bare: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a server loads it: the first thing that is missing is told, with its command."""
    from engines import cuda, cuda_tensorrt

    monkeypatch.setattr(gpu, "why_not", lambda: "")
    monkeypatch.setattr(toolchain, "check", lambda: None)
    monkeypatch.setattr(cuda_tensorrt, "device_named", lambda name: cuda.device_named("cpu"))
    with pytest.raises(NoEngine, match="there is no plan of text_encoder for sm_89, backend tensorrt_rtx; run `make "):
        load(bare, "tensorrt_rtx")
