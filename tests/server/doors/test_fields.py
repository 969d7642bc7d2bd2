"""How many fields a message has, counted on the wire, as protobuf itself would find them."""

from __future__ import annotations

import random
from typing import Any

import pytest
from google.protobuf.message import DecodeError

from latentd.v1 import images_pb2
from server.app import Server
from server.doors.fields import MOST, has_more_fields
from server.doors.oip.inference import inference_pb2 as pb
from tests.support import oip, wire
from tests.support.serving import address

REQUEST = pb.ModelInferRequest.DESCRIPTOR


def counted(data: bytes, kind: Any = REQUEST) -> int:
    """The least number of which the message has no more fields."""
    return next(most for most in range(100) if not has_more_fields(data, kind, most))


def test_fields_of_all_levels_count() -> None:
    message = oip.request("m", 2, prompt="a", seed=3, format="png")
    # The name; a parameter of its key and value, of text; two inputs of name, type and shape; two of raw contents.
    assert counted(message.SerializeToString()) == 1 + (1 + 2 + 1) + 2 * (1 + 3) + 2
    assert counted(b"") == 0
    generate = images_pb2.GenerateRequest(prompt="a", guidance=1.0, init_image=b"\x0a\x00" * 1000, guidance_start=0.5)
    assert counted(generate.SerializeToString(), images_pb2.GenerateRequest.DESCRIPTOR) == 4


@pytest.mark.parametrize("field", [b"\x2a\x00", b"\x22\x00", b"\x3a\x00", b"\x32\x00", b"\xf0\x3f\x01", b"\x0b\x0c"])
def test_a_message_of_many_fields_is_refused_before_it_is_parsed(field: bytes, server: Server) -> None:
    """Known ones and unknown ones, and groups."""
    method = f"/{oip.SERVICE.full_name}/ModelInfer"
    told = ("INVALID_ARGUMENT", f"the request has more than {MOST} fields")
    assert wire.refusal(address(server), method, field * (MOST + 1)) == told
    assert wire.refusal(address(server), method, field * (MOST // 2)) != told
    inside = field * (MOST + 1)
    length = bytes([len(inside) & 127 | 128, len(inside) >> 7])
    assert has_more_fields(b"\x2a" + length + inside, REQUEST) and not has_more_fields(
        b"\x3a" + length + inside, REQUEST
    )


def test_whatever_bytes_come_it_ends_and_parses_as_before() -> None:
    """What is cut off or no message at all is the parser's to refuse."""
    rolled, message = random.Random(5), oip.request("m", 2, prompt="a", seed=3, format="png").SerializeToString()
    refused = 0
    for _ in range(2000):
        data = bytearray(message[: rolled.randrange(len(message) + 1)])
        for _ in range(rolled.randrange(4) if data else 0):
            data[rolled.randrange(len(data))] = rolled.randrange(256)
        assert not has_more_fields(bytes(data), REQUEST, len(data) + 1)
        try:
            pb.ModelInferRequest.FromString(bytes(data))
        except DecodeError:
            refused += 1
    assert 100 < refused < 1990
    for data in (b"\x80" * 1000, b"\xff" * 9, b"\x2a\xff\xff\xff\xff\x7f", b"\x2a", b"\x0f"):
        assert not has_more_fields(data, REQUEST, 5)
