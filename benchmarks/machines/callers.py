"""Callers that never ask twice: what they see is what the balancer and the servers make of a kill."""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import http.client
import itertools
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import grpc

from latentd.v1 import images_pb2 as pb
from latentd.v1.images_pb2_grpc import ImagesStub

ONCE = [("grpc.enable_retries", 0), ("grpc.max_receive_message_length", 64 << 20)]
SEEDS = 8  # requests of so many seeds, again and again: the same seed, the same bytes


class End(NamedTuple):
    """Tells how a call ended."""

    seed: int
    code: str
    sentence: str
    at: float  # monotonic seconds
    picture: str  # SHA-256 of the first picture's file; "" where there is none


def request(seed: int, **fields: Any) -> pb.GenerateRequest:
    return pb.GenerateRequest(prompt=f"red apple number {seed}, color style", seed=seed, **fields)


def blocking(channel: grpc.Channel, seed: int, **fields: Any) -> End:
    """Ask for a picture in one message."""
    try:
        stub: Any = ImagesStub(channel)
        response = stub.GenerateBlocking(request(seed, **fields))  # a deadline might be refused on a busy machine
        return End(seed, "OK", "", time.monotonic(), hashlib.sha256(response.images[0].data).hexdigest())
    except grpc.RpcError as error:
        return _end(seed, error)


def over_http(base: str, seed: int, **fields: Any) -> End:
    """Ask for a picture by OpenAI's door."""
    body = json.dumps({"prompt": request(seed).prompt, "seed": seed, **fields}).encode()
    asked = urllib.request.Request(f"{base}/v1/images/generations", body, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(asked, timeout=600) as answer:
            picture = base64.b64decode(json.load(answer)["data"][0]["b64_json"])
        return End(seed, "OK", "", time.monotonic(), hashlib.sha256(picture).hexdigest())
    except urllib.error.HTTPError as error:
        return End(seed, str(error.code), error.read().decode(), time.monotonic(), "")
    except (OSError, http.client.HTTPException) as error:  # no answer at all, or a part of one
        return End(seed, type(error).__name__, str(error), time.monotonic(), "")


class Stream:
    """Follows one call of Generate, in a thread."""

    def __init__(self, address: str, seed: int, **fields: Any) -> None:
        self._channel = grpc.insecure_channel(address, ONCE)
        self.begun = threading.Event()  # a step was made for it
        self.steps: list[int] = []
        self._end: End | None = None
        stub: Any = ImagesStub(self._channel)
        self._call = stub.Generate(request(seed, **fields))
        self._thread = threading.Thread(target=self._follow, args=(seed,), daemon=True)
        self._thread.start()

    def _follow(self, seed: int) -> None:
        picture = ""
        try:
            for message in self._call:
                kind = message.WhichOneof("event")
                if kind == "step":
                    self.steps.append(message.step.step)
                    self.begun.set()
                elif kind == "image":
                    picture = hashlib.sha256(message.image.data).hexdigest()
            self._end = End(seed, "OK", "", time.monotonic(), picture)
        except grpc.RpcError as error:
            self._end = _end(seed, error)
        finally:
            self.begun.set()

    @property
    def over(self) -> bool:
        return self._end is not None

    def cancel(self) -> None:
        self._call.cancel()

    def end(self) -> End:
        """Wait for its end."""
        self._thread.join()
        self._channel.close()
        assert self._end
        return self._end


@contextlib.contextmanager
def unary_load(address: str, base: str, callers: int, **fields: Any) -> Iterator[list[End]]:
    """Ask for pictures with so many callers, each one after another, during a block; gives their ends, as they come.

    One of them asks over HTTP. A caller's last call ends before the block does.
    """
    ends: list[End] = []
    seeds, over = itertools.cycle(range(SEEDS)), threading.Event()

    def call(ask: Callable[[int], End]) -> None:
        while not over.is_set():
            ends.append(ask(next(seeds)))

    with contextlib.ExitStack() as stack:
        asks: list[Callable[[int], End]] = [lambda seed: over_http(base, seed, **fields)]
        for _ in range(callers - 1):
            channel = stack.enter_context(grpc.insecure_channel(address, ONCE))
            asks.append(functools.partial(blocking, channel, **fields))
        threads = [threading.Thread(target=call, args=(ask,), daemon=True) for ask in asks]
        for thread in threads:
            thread.start()
        try:
            yield ends
        finally:
            over.set()
            for thread in threads:
                thread.join()


def _end(seed: int, error: grpc.RpcError) -> End:
    assert isinstance(error, grpc.Call)
    return End(seed, error.code().name, error.details() or "", time.monotonic(), "")
