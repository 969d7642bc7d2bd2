"""A CUDA of CPU tensors that only takes notes of what it is asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from engines.cuda.stream import Stream
from tests.support.bench import CPU


class Notes:
    """A CUDA of CPU tensors: a graph's replay is the function that was captured."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.said: list[str] = []
        self.pools: list[object] = []
        self.events = 0
        notes = self

        class FakeStream:
            name = ""

            def synchronize(self) -> None:
                notes.said.append(f"{self.name} synchronized")

            def wait_event(self, event: FakeEvent) -> None:
                notes.said.append(f"{self.name} waits for {event.number}")

        class FakeEvent:
            def __init__(self, blocking: bool = False) -> None:
                assert blocking, "the host sleeps and does not spin"
                notes.events += 1
                self.number = notes.events

            def record(self, stream: FakeStream) -> None:
                notes.said.append(f"event {self.number} on {stream.name}")

            def synchronize(self) -> None:
                notes.said.append(f"host waits for {self.number}")

            def query(self) -> bool:
                return False

        class FakeGraph:
            def replay(self) -> None:
                notes.said.append("replay")

        @contextlib.contextmanager
        def capturing(graph: FakeGraph, pool: object, stream: FakeStream, capture_error_mode: str) -> Iterator[None]:
            assert capture_error_mode == "thread_local"
            notes.pools.append(pool)
            notes.said.append("capture")
            yield
            notes.said.append("captured")

        self.stream_class = FakeStream
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
        monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
        monkeypatch.setattr(torch.cuda, "graph", capturing)
        self.reserved, self.room = 0, (8 << 30, 24 << 30)
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: self.reserved)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: self.room)
        # Pinned memory is CUDA's too.
        monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: self._said("pinned", tensor))
        monkeypatch.setattr(
            torch.Tensor, "record_stream", lambda tensor, stream: self.said.append("kept for " + stream.name)
        )
        empty = torch.empty
        monkeypatch.setattr(torch, "empty", lambda *a, pin_memory=False, **k: empty(*a, **k))

    def stream(self, name: str) -> Stream:
        made = Stream(CPU)
        fake: Any = self.stream_class()
        fake.name = name
        made._cuda, made._pool = fake, object()
        return made

    def _said(self, what: str, value: Any) -> Any:
        self.said.append(what)
        return value

    def clear(self) -> None:
        self.said.clear()
