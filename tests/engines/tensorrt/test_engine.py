"""The runner against a stand-in for TensorRT: what it asks of it, in which order, and what it says when that fails.

The stand-in has no more names than these tests need, and tests/engines/tensorrt/test_names.py checks every one that
the runner uses against the real bindings. No GPU is involved: what a plan computes is not tested here.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from engines.errors import BackendError, DeviceError, OutOfMemory
from engines.tensorrt.serve.engine import TensorRtEngine, port_bytes

FACTS = {
    "inputs": [{"name": "latents", "dtype": "FLOAT", "shape": [1, 4, 8, 8]}],
    "outputs": [{"name": "picture", "dtype": "FLOAT", "shape": [1, 3, 64, 64]}],
}
PORTS = {"latents": ("INPUT", "FLOAT", (1, 4, 8, 8)), "picture": ("OUTPUT", "FLOAT", (1, 3, 64, 64))}


class Logger:
    INTERNAL_ERROR, ERROR, WARNING = range(3)

    def log(self, severity: int, message: str) -> None:
        raise AssertionError("overridden")


class Context:
    def __init__(self, calls: list[Any], log: Logger) -> None:
        self.calls, self.log, self.fails = calls, log, ""

    def set_device_memory(self, address: int, size: int) -> None:
        self.calls.append(("memory", address, size))

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.calls.append((name, address))
        return self._done("set_tensor_address")

    def execute_async_v3(self, stream: int) -> bool:
        self.calls.append(("run", stream))
        return self._done("execute_async_v3")

    def _done(self, what: str) -> bool:
        if self.fails == what:
            self.log.log(Logger.ERROR, f"{what}:\n  the card says no")
            self.log.log(Logger.WARNING, "not this")
        return self.fails != what


class Config:
    def __init__(self, calls: list[Any], rtx: bool) -> None:
        self.calls = calls
        if rtx:
            self.create_runtime_cache = lambda: SimpleNamespace(
                deserialize=lambda blob: calls.append(("cache", blob)), serialize=lambda: b"compiled"
            )
            self.set_runtime_cache = lambda cache: calls.append("set_runtime_cache")

    def set_execution_context_allocation_strategy(self, strategy: str) -> None:
        self.calls.append(strategy)


class Engine:
    device_memory_size_v2 = 1000

    def __init__(self, calls: list[Any], log: Logger, ports: dict[str, Any], rtx: bool) -> None:
        self.context = Context(calls, log)
        self._config, self._ports, self._names = Config(calls, rtx), ports, list(ports)
        self.num_io_tensors = len(ports)

    def get_tensor_name(self, i: int) -> str:
        return self._names[i]

    def get_tensor_mode(self, name: str) -> str:
        return self._ports[name][0]

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name=self._ports[name][1])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._ports[name][2]

    def create_runtime_config(self) -> Config:
        return self._config

    def create_execution_context(self, config: Config) -> Context:
        assert config is self._config
        return self.context


class Trt:
    """A module."""

    ILogger = Logger
    TensorIOMode = SimpleNamespace(INPUT="INPUT", OUTPUT="OUTPUT")
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="USER_MANAGED")

    def __init__(
        self, ports: dict[str, Any] = PORTS, rtx: bool = True, loads: bool = True, says: str = "built for another GPU"
    ) -> None:
        self.calls: list[Any] = []
        self._ports, self._rtx, self._loads, self._says = ports, rtx, loads, says

    def Runtime(self, log: Logger) -> Any:  # noqa: N802 (TensorRT's name)
        def deserialize(plan: bytes) -> Engine | None:
            self.calls.append(plan)
            if self._loads:
                self.engine = Engine(self.calls, log, self._ports, self._rtx)
                return self.engine
            log.log(Logger.INTERNAL_ERROR, self._says)
            log.log(Logger.WARNING, "Requested amount of GPU memory (15485030400 bytes) could not be allocated.")
            return None

        return SimpleNamespace(deserialize_cuda_engine=deserialize)


@pytest.mark.parametrize("rtx", [False, True])
def test_a_plan_from_bytes_to_a_run(rtx: bool) -> None:
    trt = Trt(rtx=rtx)
    engine = TensorRtEngine(trt, b"plan", FACTS, cache=b"of before")
    cached: list[Any] = [("cache", b"of before"), "set_runtime_cache"] if rtx else []
    assert trt.calls == [b"plan", "USER_MANAGED", *cached]
    assert engine.compiled() == (b"compiled" if rtx else b"")

    trt.calls.clear()
    engine.lend(512, engine.workspace)
    engine.bind("latents", 0x1000)
    engine.bind("picture", 0x2000)
    engine.enqueue(7)
    engine.enqueue(7)  # nothing is set again: this is what a CUDA graph captures
    assert trt.calls == [("memory", 512, 1000), ("latents", 0x1000), ("picture", 0x2000), ("run", 7), ("run", 7)]


def test_a_plan_that_does_not_load() -> None:
    with pytest.raises(BackendError, match="cannot load the plan: built for another GPU; .*; build it again") as caught:
        TensorRtEngine(Trt(loads=False), b"plan", FACTS)
    assert not isinstance(caught.value, OutOfMemory)


@pytest.mark.parametrize(
    "says", ["Error Code 1: Cuda Runtime (out of memory)", "Error Code 2: OutOfMemory (no further"]
)
def test_a_plan_for_which_there_is_no_room(says: str) -> None:
    """No build mends it. The words are TensorRT 8's and 10's."""
    with pytest.raises(OutOfMemory, match="^the GPU's memory is full: TensorRT cannot load the plan .*15485030400 byt"):
        TensorRtEngine(Trt(loads=False, says=says), b"plan", FACTS)


@pytest.mark.parametrize(
    ("name", "port"),
    [
        ("latents", ("INPUT", "HALF", (1, 4, 8, 8))),
        ("latents", ("INPUT", "FLOAT", (2, 4, 8, 8))),
        ("latents", ("OUTPUT", "FLOAT", (1, 4, 8, 8))),
        ("more", ("INPUT", "FLOAT", (1,))),
    ],
)
def test_a_plan_that_is_not_its_manifests(name: str, port: Any) -> None:
    with pytest.raises(BackendError, match=f"the plan's tensor '{name}' is .*its manifest says"):
        TensorRtEngine(Trt(PORTS | {name: port}), b"plan", FACTS)


def test_failures_carry_what_tensorrt_said() -> None:
    trt = Trt()
    engine = TensorRtEngine(trt, b"plan", FACTS)
    trt.engine.context.fails = "set_tensor_address"
    with pytest.raises(BackendError, match="'latents': set_tensor_address: the card says no$"):
        engine.bind("latents", 1)
    trt.engine.context.fails = "execute_async_v3"
    with pytest.raises(AssertionError, match=r"no buffer for \['latents', 'picture'\]"):
        engine.enqueue(0)
    with pytest.raises(AssertionError):
        engine.lend(100, 1000)  # not aligned
    with pytest.raises(AssertionError):
        engine.lend(512, 999)  # too small


def test_a_device_that_fails() -> None:
    trt = Trt()
    engine = TensorRtEngine(trt, b"plan", FACTS)
    engine.bind("latents", 1)
    engine.bind("picture", 2)
    trt.engine.context.fails = "execute_async_v3"
    with pytest.raises(DeviceError, match="TensorRT failed: execute_async_v3: the card says no$"):
        engine.enqueue(0)


def test_buffers_have_the_bytes_of_their_ports() -> None:
    assert port_bytes(FACTS["inputs"][0]) == 4 * 4 * 8 * 8
    assert port_bytes({"dtype": "INT64", "shape": [1, 77]}) == 8 * 77
    assert port_bytes({"dtype": "HALF", "shape": []}) == 2
