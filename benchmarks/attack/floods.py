"""Floods: finished pictures that wait for the decoder, one caller's long request, idle connections, and bad timings."""

from __future__ import annotations

import contextlib
import socket
import statistics
import time
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.empty_pb2 import Empty

from benchmarks.attack.trial import Figure, request, trial, until
from benchmarks.attack.unread import Unread
from benchmarks.serving import cpu_seconds
from latentd.v1 import images_pb2 as pb
from latentd.v1.images_pb2_grpc import ImagesStub

_FLOOD = 40  # requests of eight pictures of one step
_DESCRIPTORS = 64
_SOFT = ("sh", "-c", f'ulimit -Sn {_DESCRIPTORS}; exec "$@"', "sh")
_HARD = ("sh", "-c", f'ulimit -n {_DESCRIPTORS}; exec "$@"', "sh")


def backlog(folder: Path) -> list[Figure]:
    """Begin many pictures of one step; how many are undelivered once nobody waits or sits any more?"""
    with trial(folder) as server, Unread(server.address) as caller:

        def undelivered() -> float:
            return (server.gauge("queue_seconds_count") or 0.0) - (server.gauge("images_total") or 0.0)

        for _ in range(_FLOOD):
            caller.call(request(images=8, steps=1))
        until(lambda: (server.gauge("queue_depth") or 0) > 0)
        until(server.idle)
        left = undelivered()
    what = f"{_FLOOD} x 8 pictures of one step: finished, undelivered once queue and seats are empty"
    return [Figure(what, "pictures", left)]


def flood(folder: Path) -> list[Figure]:
    """Begin eight pictures of 150 steps from 127.0.0.2; how long does a 4-step request from 127.0.0.1 take?"""
    with trial(folder) as server:
        alone = statistics.median(server.one(steps=4)[2] for _ in range(5))
        with Unread(server.address, "127.0.0.2") as caller:
            caller.call(request(images=8, steps=150))
            until(lambda: (server.gauge("rows_live") or 0) >= 16)
            beside = server.one(steps=4)[2]
    return [Figure("4 steps beside another caller's 8 x 150, over alone", "ratio", beside / alone)]


def descriptors(folder: Path) -> list[Figure]:
    """Open idle connections to a server that may have 64 descriptors, softly or for good; is a request answered?"""
    figures = []
    for what, before in (("soft limit", _SOFT), ("hard limit", _HARD)):
        with contextlib.ExitStack() as stack:
            server = stack.enter_context(trial(folder, before=before))
            host, _, port = server.address.rpartition(":")
            for _ in range(_DESCRIPTORS):
                with contextlib.suppress(OSError):
                    stack.enter_context(socket.create_connection((host, int(port)), 2))
            scrape = server.metrics.split("/")[2].rpartition(":")
            with contextlib.suppress(OSError):
                waiting = stack.enter_context(socket.create_connection((scrape[0], int(scrape[2])), 2))
                waiting.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            time.sleep(0.5)
            busy, start = cpu_seconds(server.pid), time.monotonic()
            time.sleep(2)
            cores = (cpu_seconds(server.pid) - busy) / (time.monotonic() - start)
            answered = server.one(5, steps=1)[0] != "DEADLINE_EXCEEDED"
        figures.append(Figure(f"idle server out of {_DESCRIPTORS} descriptors, {what}: processor", "cores", cores))
        figures.append(Figure(f"the same, {what}: a request is answered", "yes is 1", float(answered)))
    return figures


def health(folder: Path) -> list[Figure]:
    """Call Health/List, which reflection offers."""
    with trial(folder) as server, grpc.insecure_channel(server.address) as channel:
        call = channel.unary_unary("/grpc.health.v1.Health/List", Empty.SerializeToString, bytes)
        try:
            call(Empty(), timeout=10)
            code = "OK"
        except grpc.RpcError as error:
            assert isinstance(error, grpc.Call)
            code = error.code().name
    return [Figure("Health/List ends in INTERNAL", "yes is 1", float(code == "INTERNAL"))]


def timings(folder: Path) -> list[Figure]:
    """Make eight pictures in one request; what is the sum of its timings over its time?"""
    with trial(folder) as server, grpc.insecure_channel(server.address) as channel:
        start, done = time.monotonic(), pb.Done()
        stub: Any = ImagesStub(channel)
        for event in stub.Generate(request(images=8, steps=4)):
            done = event.done if event.HasField("done") else done
        wall = 1e3 * (time.monotonic() - start)
        parts = (value for field, value in done.timings.ListFields() if field.name.endswith("_ms"))
        ratio = sum(parts) / wall
    return [Figure("sum of timings over the request's time, 8 pictures", "ratio", ratio)]
