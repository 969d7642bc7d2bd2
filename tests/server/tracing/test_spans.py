"""Spans of requests through every door: parents, parts, steps, ids and errors, as a collector has them."""

from __future__ import annotations

import itertools
import json
import logging
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from typing import Any

import grpc
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from engines.model import Model
from latentd.v1 import images_pb2 as pb
from latentd.v1.images_pb2_grpc import ImagesStub
from server.app import Server
from server.tracing.trace import MOST_EVENTS
from tests.support import oip
from tests.support.collector import Collector, collecting, values
from tests.support.doors import DOORS
from tests.support.held import Held, eventually
from tests.support.patience import PATIENCE
from tests.support.serving import address, http, metric, serving

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"  # the example of W3C's recommendation
SAMPLED, LEFT = f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-00"
PROMPT = "vermilion zeppelin"  # that stands nowhere else
Sent = list[tuple[str, str]]


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with pytest.MonkeyPatch.context() as patch, collecting() as collector:
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")  # milliseconds: the SDK sends what has come since
        yield collector


@pytest.fixture(scope="module")
def server(model: Model, collector: Collector) -> Iterator[Server]:
    with serving(model, seats=2, http_port=0, otlp=collector.url) as server:
        yield server


def images(server: Server, sent: Sent, **fields: Any) -> None:
    with grpc.insecure_channel(address(server)) as channel:
        for _ in ImagesStub(channel).Generate(pb.GenerateRequest(**fields), metadata=sent, timeout=PATIENCE):
            pass


def infer(server: Server, sent: Sent, **fields: Any) -> None:
    with grpc.insecure_channel(address(server)) as channel:
        message = oip.request(server.service.model_id, **fields)
        oip.method(channel, "ModelInfer")(message, metadata=sent, timeout=PATIENCE)


def infer_stream(server: Server, sent: Sent, **fields: Any) -> None:
    with grpc.insecure_channel(address(server)) as channel:
        message = iter([oip.request(f"{server.service.model_id}.stream", **fields)])
        for _ in oip.method(channel, "ModelStreamInfer")(message, metadata=sent, timeout=PATIENCE):
            pass


def post(path: str) -> Callable[..., None]:
    def ask(server: Server, sent: Sent, **fields: Any) -> None:
        headers = {"content-type": "application/json", **dict(sent)}
        request = urllib.request.Request(http(server) + path, json.dumps(fields).encode(), headers)
        try:
            urllib.request.urlopen(request, timeout=PATIENCE).read()
        except urllib.error.HTTPError as error:
            error.close()

    return ask


ASKERS = {
    "latentd.v1.Images/Generate": images,
    "inference.GRPCInferenceService/ModelInfer": infer,
    "inference.GRPCInferenceService/ModelStreamInfer": infer_stream,
    "POST /v1/images/generations": post("/v1/images/generations"),
    "POST /sdapi/v1/txt2img": post("/sdapi/v1/txt2img"),
    "POST /api/generate": post("/api/generate"),
}
every_door = pytest.mark.parametrize("name", ASKERS)


def test_every_door_is_asked() -> None:
    assert {door.label for door in DOORS} == {"grpc", "oip", "openai", "a1111", "page"} and len(ASKERS) == 6


@every_door
def test_a_request_is_a_trace_below_its_caller_s(name: str, server: Server, collector: Collector) -> None:
    id = f"one-{list(ASKERS).index(name)}"
    sent = [("x-request-id", id), ("traceparent", SAMPLED), ("tracestate", "vendor=1")]
    ASKERS[name](server, sent, prompt="a " * (1 + list(ASKERS).index(name)) + PROMPT, steps=3, seed=5)
    door, parts = collector.trace(id)
    assert (door.name, door.kind) == (name, Span.SPAN_KIND_SERVER)
    assert (door.trace_id.hex(), door.parent_span_id.hex(), door.trace_state) == (TRACE, PARENT, "vendor=1")
    assert parts.keys() >= {"queue", "encode", "denoise", "decode", "file"}
    assert {span.trace_id for span in parts.values()} == {door.trace_id}
    told = values(door.attributes)
    if "POST" in name:
        assert (told["http.request.method"], told["http.response.status_code"]) == ("POST", 200)
        assert told["http.route"] == told["url.path"] == name.removeprefix("POST ")
    else:
        assert (told["rpc.system.name"], told["rpc.method"], told["rpc.response.status_code"]) == ("grpc", name, "OK")
    assert (told["latentd.steps"], told["latentd.seed"], told["client.address"]) == (3, 5, "127.0.0.1")
    assert "error.type" not in told and door.status.code == Status.STATUS_CODE_UNSET

    in_order = sorted(parts.values(), key=lambda span: span.start_time_unix_nano)
    assert door.start_time_unix_nano <= in_order[0].start_time_unix_nano
    assert in_order[-1].end_time_unix_nano <= door.end_time_unix_nano
    for before, after in itertools.pairwise(in_order):
        assert abs(before.end_time_unix_nano - after.start_time_unix_nano) < 1000, "a part begins where another ends"
    steps = parts["denoise"].events
    assert [values(event.attributes) for event in steps] == [
        {"picture": 0, "step": step, "seats": 1} for step in (1, 2, 3)
    ]
    assert all(
        parts["denoise"].start_time_unix_nano <= event.time_unix_nano <= parts["denoise"].end_time_unix_nano
        for event in steps
    )


def test_the_id_of_the_answer_is_that_of_the_log_and_the_trace(
    server: Server, collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    outcome = DOORS[-1].ask(server, prompt=PROMPT, steps=2)
    assert outcome.request_id
    door, _ = collector.trace(outcome.request_id)
    lines = [record for record in caplog.records if getattr(record, "request", None) == outcome.request_id]
    assert len(lines) == 1 and lines[0].request.trace_id == door.trace_id.hex()
    assert door.parent_span_id == b"" and collector.resources[0]["service.name"] == "latentd"


def test_prompts_stay_here(server: Server, collector: Collector) -> None:
    images(server, [("x-request-id", "secret")], prompt=PROMPT, negative_prompt=PROMPT, steps=2)
    collector.trace("secret")
    assert len(collector.bodies) > 0 and not [body for body in collector.bodies if PROMPT.encode() in body]


def test_prompts_are_told_where_the_setting_says_so(model: Model, collector: Collector) -> None:
    with serving(model, otlp=collector.url, trace_prompts=True) as server:
        images(server, [("x-request-id", "open")], prompt=PROMPT, steps=2)
        door, _ = collector.trace("open")
    assert values(door.attributes)["latentd.prompt"] == PROMPT
    collector.bodies.clear()


def test_many_steps_are_few_events(server: Server, collector: Collector) -> None:
    images(server, [("x-request-id", "long")], prompt="a", steps=40, images=2)
    _, parts = collector.trace("long")
    events = [values(event.attributes) for event in parts["denoise"].events]
    assert len(events) <= MOST_EVENTS and sum(event["evaluations"] for event in events) == 80
    assert events[-1]["step"] == 40


@every_door
def test_a_refusal_is_an_error_and_not_the_server_s_fault(name: str, server: Server, collector: Collector) -> None:
    id = f"refused-{list(ASKERS).index(name)}"
    try:
        ASKERS[name](server, [("x-request-id", id)], prompt="a", steps=0)
    except grpc.RpcError as error:
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    door, parts = collector.trace(id)
    told = values(door.attributes)
    assert (told["error.type"], told["latentd.reason"]) == ("INVALID_ARGUMENT", "steps is 0; it must be 1 to 150")
    assert told.get("http.response.status_code", 400) == 400 and told.get("rpc.response.status_code") != "OK"
    assert door.status.code == Status.STATUS_CODE_UNSET and not parts


@pytest.mark.parametrize("name", ["latentd.v1.Images/Generate", "POST /v1/images/generations", "POST /api/generate"])
def test_a_fault_says_where(name: str, wired: Model, held: Held, collector: Collector) -> None:
    def fail() -> None:
        raise RuntimeError("broken")

    id = f"fault-{list(ASKERS).index(name)}"
    with serving(wired, http_port=0, otlp=collector.url) as server:
        held.before_decode = fail
        try:
            ASKERS[name](server, [("x-request-id", id)], prompt="a", steps=2)
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.INTERNAL
        door, parts = collector.trace(id)
    assert door.status.code == Status.STATUS_CODE_ERROR and door.status.message == "image 0 cannot be decoded"
    status = values(door.attributes).get("http.response.status_code")
    assert status == {"POST /v1/images/generations": 500, "POST /api/generate": 200}.get(name), "a stream had begun"
    failed = [name for name, span in parts.items() if span.status.code == Status.STATUS_CODE_ERROR]
    assert failed == [list(parts)[-1]] and "denoise" in parts and "file" not in parts


def test_the_standard_s_switch_turns_it_off(
    model: Model, collector: Collector, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    with serving(model, otlp=collector.url) as server:
        images(server, [("x-request-id", "off")], prompt="a", steps=1)
    assert not [span for span in collector.spans if values(span.attributes).get("latentd.request_id") == "off"]
    (line,) = [record for record in caplog.records if getattr(record, "request", None) == "off"]
    assert line.request.trace_id == ""


def test_who_leaves_is_no_fault(wired: Model, held: Held, collector: Collector) -> None:
    with serving(wired, otlp=collector.url) as server, grpc.insecure_channel(address(server)) as channel:
        held.hold()
        call = ImagesStub(channel).Generate(pb.GenerateRequest(prompt="a"), metadata=[("x-request-id", "left")])
        held.begun()
        call.cancel()
        eventually(lambda: metric(server, "requests_total", door="grpc", code="CANCELLED"), 1)
        held.release()
        door, parts = collector.trace("left")
    assert values(door.attributes)["error.type"] == "CANCELLED" and door.status.code == Status.STATUS_CODE_UNSET
    assert "denoise" in parts and "decode" not in parts


def test_the_caller_decides_what_is_sampled_else_the_ratio(
    model: Model, collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with serving(model, otlp=collector.url, trace_ratio=0.0) as server:
        images(server, [("x-request-id", "nobody")], prompt="a", steps=2)
        images(server, [("x-request-id", "not"), ("traceparent", LEFT)], prompt="a", steps=2)
        images(server, [("x-request-id", "wanted"), ("traceparent", SAMPLED)], prompt="a", steps=2)
        collector.trace("wanted")  # they end in this order
        known = {values(span.attributes).get("latentd.request_id") for span in collector.spans}
        assert not known & {"nobody", "not"}
        ids = {str(record.request): record.request.trace_id for record in caplog.records if hasattr(record, "request")}
        assert ids["not"] == ids["wanted"] == TRACE, "the log names the trace all the same"


@pytest.mark.parametrize(
    "sent",
    [
        [("traceparent", "00-" + "0" * 32 + f"-{PARENT}-01")],
        [("traceparent", "x" * 4000)],
        [("traceparent", ""), ("tracestate", "=" * 4000)],
        [("traceparent", f"ff-{TRACE}-{PARENT}-01")],
    ],
)
def test_a_parent_that_cannot_be_read_is_none(sent: Sent, server: Server, collector: Collector) -> None:
    id = f"parent-{abs(hash(str(sent)))}"
    images(server, [("x-request-id", id), *sent], prompt="a", steps=1)
    door, _ = collector.trace(id)
    assert door.parent_span_id == b"" and door.trace_id.hex() != TRACE


@pytest.mark.parametrize("state", ["a b;", "x" * 7000, ",".join(f"k{n}=v" for n in range(80))])
def test_a_state_that_cannot_be_read_is_left_out_and_not_logged(
    state: str, server: Server, collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    id = f"state-{len(state)}"
    images(server, [("x-request-id", id), ("traceparent", SAMPLED), ("tracestate", state)], prompt="a", steps=1)
    door, _ = collector.trace(id)
    assert door.parent_span_id.hex() == PARENT and door.trace_state == ""
    assert not [record for record in caplog.records if record.name.startswith("opentelemetry")]


def test_of_two_parents_that_differ_none_is_taken(server: Server, collector: Collector) -> None:
    """Over gRPC the library keeps the last one."""
    connection = HTTPConnection("127.0.0.1", server.http_port or 0, timeout=PATIENCE)
    body = json.dumps({"prompt": "a", "steps": 1})
    connection.putrequest("POST", "/api/generate")
    sent = [("traceparent", SAMPLED), ("traceparent", SAMPLED.replace("4bf", "5bf")), ("x-request-id", "torn")]
    for name, value in [*sent, ("content-type", "application/json"), ("content-length", str(len(body)))]:
        connection.putheader(name, value)
    connection.endheaders(body.encode())
    connection.getresponse().read()
    connection.close()
    door, _ = collector.trace("torn")
    assert door.parent_span_id == b"" and door.trace_id.hex()[3:] != TRACE[3:]


def test_what_is_sent_is_counted(server: Server, collector: Collector) -> None:
    eventually(lambda: metric(server, "spans_sent_total") > 0, True)
    assert metric(server, "spans_dropped_total", why="collector") == 0
