"""A CUDA of CPU tensors that captures as CUDA does: the function runs, its addresses are noted, and it is forgotten."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from engines.artifact.opened import Artifact
from engines.cache import store
from engines.cuda.stream import Stream
from engines.tensorrt.serve.plan import Workspace
from tests.support.cuda_notes import Notes
from tests.support.plan_doubles import Engines, TorchEngine


class _Addresses(TorchDispatchMode):
    """Notes the storages that were there before: what is made in a capture is of the graph's own pool."""

    def __init__(self) -> None:
        super().__init__()
        self.read: dict[int, tuple[str, StorageWeakRef]] = {}
        self._pool: dict[int, torch.UntypedStorage] = {}  # held, so that no address comes twice

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor) and (key := tensor.untyped_storage()._cdata) not in self._pool:
                self.read.setdefault(key, (str(func), StorageWeakRef(tensor.untyped_storage())))
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and (key := tensor.untyped_storage()._cdata) not in self.read:
                self._pool[key] = tensor.untyped_storage()
        return made


class Card(Notes):
    """Graphs by weak reference, in the order of their capture. The destruction of one of `graphs` drops the cuBLAS
    workspace of the stream that it was captured on, as in torch 2.13 (pytorch/pytorch#193402)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(monkeypatch)
        self.graphs: list[weakref.ref[Any]] = []
        self._looking: _Addresses | None = None
        self._engines: list[weakref.ref[Any]] = []
        self._lent: dict[int, StorageWeakRef] = {}
        card = self

        class Graph:
            """Reads `read`, and has used `engines`."""

            def __init__(self) -> None:
                self.read: list[tuple[str, StorageWeakRef]] = []
                self.engines: list[weakref.ref[Any]] = []
                self.stream: Any = None
                self.workspace = 0
                card.graphs.append(weakref.ref(self))

            def dead(self) -> list[str]:
                gone = [what for what, storage in self.read if storage.expired()]
                return gone + ["an engine" for engine in self.engines if engine() is None]

            def replay(self) -> None:
                assert not self.dead(), f"a replay reads what was freed: {self.dead()}"
                assert self.workspace == self.stream.workspaces, "a replay's cuBLAS workspace was freed"

            def __del__(self) -> None:
                if self.stream is not None:
                    self.stream.workspaces += 1

        monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
        monkeypatch.setattr(torch.cuda, "graph", self._capturing)
        streams: Any = Stream
        begin, of = streams.__init__, Workspace.of

        def beginning(stream: Any, device: torch.device) -> None:
            begin(stream, device)
            fake: Any = self.stream_class()
            fake.workspaces = 0  # that were freed
            stream._cuda, stream._pool = fake, object()

        def lending(workspace: Workspace, size: int) -> Tensor:
            memory = of(workspace, size)
            self._lent[memory.data_ptr()] = StorageWeakRef(memory.untyped_storage())
            return memory

        monkeypatch.setattr(streams, "__init__", beginning)
        monkeypatch.setattr(Workspace, "of", lending)

    @contextlib.contextmanager
    def _capturing(self, graph: Any, pool: object, stream: Any, capture_error_mode: str) -> Iterator[None]:
        graph.stream, graph.workspace = stream, stream.workspaces
        self._looking, self._engines = _Addresses(), []
        with self._looking:
            yield
        graph.read, graph.engines, self._looking = list(self._looking.read.values()), self._engines, None

    def uses(self, engine: TorchEngine) -> None:
        """A capture comes to a plan: it will have its engine's addresses, and those of the memory that it was lent."""
        if self._looking is not None:
            self._engines.append(weakref.ref(engine))
            for address, _ in engine.lent:
                self._looking.read[address] = "a workspace", self._lent[address]

    def dead(self, first: int = 0) -> list[str]:
        """What the graphs from this one on read, of those that are there, and nobody holds any more."""
        return [what for ref in self.graphs[first:] if (graph := ref()) is not None for what in graph.dead()]


class Loading:
    """Makes engines of what the store has, and holds none of them."""

    def __init__(self, artifact: Artifact, card: Card) -> None:
        self._modules, self._card = Engines(artifact).modules, card

    def __call__(self, found: store.Engine, known: bytes) -> Any:
        card, network = self._card, found.manifest["identity"]["network"]

        class Watched(TorchEngine):
            def enqueue(self, stream: int) -> None:
                card.uses(self)
                with _disable_current_modes():
                    super().enqueue(stream)

        return Watched(network, self._modules[network], found.manifest["facts"], known)
