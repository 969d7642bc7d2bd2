"""Bad input over the wire: each with its code, in words that name field, value and limit."""

from __future__ import annotations

import math

import pytest

from engines.model import Model
from latentd.v1 import images_pb2 as pb
from pipeline.samplers import SAMPLERS
from server.app import Server
from tests.support import wire
from tests.support.serving import address, serving

SAMPLER_LIST = ", ".join(SAMPLERS)
SIZE_LIST = "24x24, 32x24, 24x28"


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"prompt": "x" * 10**6}, "prompt has 1000000 characters; at most 4096 are taken"),
        ({"prompt": "an \0 apple"}, "prompt has a NUL character at position 3; text has none"),
        ({"negative_prompt": "x" * 4097}, "negative_prompt has 4097 characters; at most 4096 are taken"),
        ({"sampler": "dpm++"}, f"sampler is 'dpm++'; it must be one of {SAMPLER_LIST}"),
        ({"sampler": "\u00e9\n"}, f"sampler is '\u00e9\\n'; it must be one of {SAMPLER_LIST}"),
        ({"steps": 0}, "steps is 0; it must be 1 to 150"),
        ({"steps": 10**9}, "steps is 1000000000; it must be 1 to 150"),
        ({"guidance": math.nan}, "guidance is nan; it must be 0 to 30"),
        ({"guidance": math.inf}, "guidance is inf; it must be 0 to 30"),
        ({"guidance": -1.0}, "guidance is -1; it must be 0 to 30"),
        ({"guidance": 31.0}, "guidance is 31; it must be 0 to 30"),
        ({"width": 25, "height": 25}, f"width x height is 25x25; the sizes served are {SIZE_LIST}"),
        ({"width": 24, "height": 32}, f"width x height is 24x32; the sizes served are {SIZE_LIST}"),
        ({"width": 28}, f"width x height is 28x24; the sizes served are {SIZE_LIST}"),
        ({"height": 32}, f"width x height is 24x32; the sizes served are {SIZE_LIST}"),
        ({"images": 0}, "images is 0; it must be 1 to 8"),
        ({"images": 9}, "images is 9; it must be 1 to 8"),
    ],
)
def test_a_field_outside_its_limits(fields, told: str, server: Server) -> None:
    assert wire.refused(address(server), **fields) == ("INVALID_ARGUMENT", told)
    message = pb.GenerateRequest(**fields).SerializeToString()
    assert wire.refusal(address(server), wire.BLOCKING, message) == ("INVALID_ARGUMENT", told)


def test_an_unknown_format(server: Server) -> None:
    message = pb.GenerateRequest(format=77).SerializeToString()  # type: ignore[arg-type]
    told = wire.refusal(address(server), wire.GENERATE, message)
    assert told == ("INVALID_ARGUMENT", "format is 77; it must be one of 0 to 3")


def test_an_unknown_format_is_looked_at_in_its_turn(server: Server) -> None:
    """Fields are checked in one order, whichever of them a door has to translate."""
    for fields, code, told in (
        ({"model": "sdxl"}, "NOT_FOUND", "model is 'sdxl'; this server has "),
        ({"images": 9}, "INVALID_ARGUMENT", "images is 9; it must be 1 to 8"),
        ({"clip_skip": 9}, "INVALID_ARGUMENT", "format is 77; it must be one of 0 to 3"),
    ):
        message = pb.GenerateRequest(format=77, **fields).SerializeToString()  # type: ignore[arg-type]
        for method in (wire.GENERATE, wire.BLOCKING):
            refused = wire.refusal(address(server), method, message)
            assert refused[0] == code and refused[1].startswith(told)


def test_an_unknown_model_and_the_known_one(server: Server, model: Model) -> None:
    told = wire.refused(address(server), model="sdxl" * 100)
    assert told == ("NOT_FOUND", f"model is {('sdxl' * 100)[:64]!r}; this server has {model.id}")
    assert wire.send(address(server), wire.GENERATE, pb.GenerateRequest(model=model.id, steps=1).SerializeToString())


def field(number: int, value: bytes) -> bytes:
    """A length-delimited field, as protobuf writes it."""
    assert len(value) < 128
    return bytes([number << 3 | 2, len(value)]) + value


@pytest.mark.parametrize("text", [b"\xff\xfe", "\ud800".encode("utf-8", "surrogatepass"), b"caf\xe9", b"\xc0\x80"])
@pytest.mark.parametrize("number", [1, 2, 3, 8])
def test_text_that_is_not_utf8(number: int, text: bytes, server: Server) -> None:
    message = field(number, text)
    for method in (wire.GENERATE, wire.BLOCKING):
        assert wire.refusal(address(server), method, message) == (
            "INVALID_ARGUMENT",
            f"the request's {len(message)} bytes do not parse as latentd.v1.GenerateRequest",
        )


@pytest.mark.parametrize("nonsense", [b"\xff" * 9, b"\x0a\x7f", b"\x00", b"{}\n\n", bytes(range(200, 256))])
@pytest.mark.parametrize(
    ("method", "kind"),
    [
        (wire.GENERATE, "latentd.v1.GenerateRequest"),
        (wire.BLOCKING, "latentd.v1.GenerateRequest"),
        (wire.MODELS, "latentd.v1.ListModelsRequest"),
        (wire.CHECK, "grpc.health.v1.HealthCheckRequest"),
        (wire.WATCH, "grpc.health.v1.HealthCheckRequest"),
        (wire.REFLECTION, "grpc.reflection.v1alpha.ServerReflectionRequest"),
        (wire.REFLECTION_V1, "grpc.reflection.v1alpha.ServerReflectionRequest"),
    ],
)
def test_bytes_that_are_no_message(method: str, kind: str, nonsense: bytes, server: Server) -> None:
    told = wire.refusal(address(server), method, nonsense)
    assert told == ("INVALID_ARGUMENT", f"the request's {len(nonsense)} bytes do not parse as {kind}")


def test_an_empty_message_is_the_defaults(server: Server, model: Model) -> None:
    events = [pb.GenerateEvent.FromString(data) for data in wire.send(address(server), wire.GENERATE, b"")]
    queued, default = events[0].queued, model.spec.defaults
    assert (queued.steps, queued.guidance, queued.sampler) == (default.steps, default.guidance, default.sampler)
    assert (queued.width, queued.height, queued.images) == (default.width, default.height, 1)
    assert events[-1].WhichOneof("event") == "done"


def test_a_message_beyond_the_limit(server: Server) -> None:
    code, told = wire.refusal(address(server), wire.GENERATE, b"\0" * ((16 << 20) + 1))
    assert code == "RESOURCE_EXHAUSTED" and "larger than max" in told and str(16 << 20) in told


def test_a_message_of_sixteen_mebibytes_is_read(server: Server) -> None:
    padding = pb.GenerateRequest(steps=1).SerializeToString() + b"\xf2\x3f"  # an unknown field, number 1022
    size = (16 << 20) - len(padding) - 4
    length = bytes([size & 127 | 128, size >> 7 & 127 | 128, size >> 14 & 127 | 128, size >> 21])
    message = padding + length + b"a" * size
    assert len(message) == 16 << 20
    assert len(wire.send(address(server), wire.GENERATE, message)) >= 2


def test_blocking_points_to_generate_where_the_answer_may_not_fit(server: Server) -> None:
    message = pb.GenerateRequest(width=1024, height=1024, images=2).SerializeToString()
    assert wire.refusal(address(server), wire.BLOCKING, message) == (
        "INVALID_ARGUMENT",
        "images x width x height x 3 is 6291456 bytes, which may not fit the 4 MiB that gRPC clients accept "
        "(at most 4128768); use Generate, which streams",
    )


def test_an_unknown_method_is_unimplemented(server: Server) -> None:
    assert wire.refusal(address(server), "/latentd.v1.Images/Edit", b"")[0] == "UNIMPLEMENTED"
    assert wire.refusal(address(server), "/latentd.v2.Images/Generate", b"")[0] == "UNIMPLEMENTED"


def test_limits_are_the_settings(model: Model) -> None:
    steps = model.spec.defaults.steps
    limits = {"max_prompt": 5, "max_steps": steps, "max_guidance": 7.0, "max_images": 2, "max_message": 2048}
    with serving(model, **limits) as server:
        for fields, told in (
            ({"prompt": "a cat!"}, "prompt has 6 characters; at most 5 are taken"),
            ({"steps": steps + 1}, f"steps is {steps + 1}; it must be 1 to {steps}"),
            ({"guidance": 7.5}, "guidance is 7.5; it must be 0 to 7"),
            ({"images": 3}, "images is 3; it must be 1 to 2"),
        ):
            assert wire.refused(address(server), **fields) == ("INVALID_ARGUMENT", told)
        assert wire.refusal(address(server), wire.GENERATE, b"\0" * 2049)[0] == "RESOURCE_EXHAUSTED"
