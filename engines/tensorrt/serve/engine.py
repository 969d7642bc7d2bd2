"""Runs a plan: it is deserialised, bound to fixed device buffers, and started on a stream that the caller owns.

One class serves TensorRT and TensorRT for RTX. It was written against their Python APIs (names checked against the
bindings of 10.15.1.29, 11.4.0.106 and RTX 1.7.1.116) and tested with stand-ins: no card has run this.

Nothing here allocates: buffers and the engine's own workspace are the caller's memory at addresses that stay, so that
`enqueue` may be captured in a CUDA graph. One static profile is the plan's only one, so no shape is ever set.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engines.errors import BackendError, DeviceError, OutOfMemory

# The bytes of an element, by the name that TensorRT's types have in a manifest.
ITEM_BYTES = {"FLOAT": 4, "HALF": 2, "BF16": 2, "INT64": 8, "INT32": 4, "BOOL": 1}
ALIGNMENT = 256  # bytes, of the workspace's address


class TensorRtEngine:
    """One plan on one device, for one thread at a time.

    `plan`: bytes whose SHA-256 was compared with the manifest's (a plan is executable code). `facts`: what the builder
    wrote into the manifest; the engine must have just those inputs and outputs. `cache`: what RTX compiled on this
    device before, from `compiled`; with another driver or device it is ignored. Errors: BackendError; OutOfMemory.
    """

    def __init__(self, trt: Any, plan: bytes | bytearray, facts: Mapping[str, Any], cache: bytes = b"") -> None:
        self._log = _log(trt)
        self._runtime = trt.Runtime(self._log)  # must outlive its engines
        engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise _refusal("TensorRT cannot load the plan", self._log.take_errors(), "; build it again for this GPU")
        self._engine = engine
        self.inputs, self.outputs = (list(facts[key]) for key in ("inputs", "outputs"))
        self._compare(trt)
        # The configuration is held because what it was given, RTX's cache above all, must outlive its contexts.
        self._config = config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        self._compiled = None
        if hasattr(config, "create_runtime_cache"):  # RTX compiles for the card when it first runs, and remembers here
            self._compiled = config.create_runtime_cache()
            if cache:
                self._compiled.deserialize(cache)  # False where it is of another driver or device: compiled again
            config.set_runtime_cache(self._compiled)
        self._context = engine.create_execution_context(config)
        if self._context is None:
            raise _refusal("TensorRT cannot make an execution context", self._log.take_errors())
        self._bound: set[str] = set()

    def _compare(self, trt: Any) -> None:
        """Check that the engine's ports are the manifest's: names, directions, types, shapes. Errors: BackendError."""
        engine = self._engine
        actual = {}
        for name in (engine.get_tensor_name(i) for i in range(engine.num_io_tensors)):
            into = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            actual[name] = into, engine.get_tensor_dtype(name).name, tuple(engine.get_tensor_shape(name))
        wanted = {
            port["name"]: (into, port["dtype"], tuple(port["shape"]))
            for into, ports in ((True, self.inputs), (False, self.outputs))
            for port in ports
        }
        for name in sorted(actual.keys() | wanted.keys()):
            if actual.get(name) != wanted.get(name):
                raise BackendError(
                    f"the plan's tensor {name!r} is {actual.get(name)}, its manifest says {wanted.get(name)}; "
                    "build the engine again"
                )

    @property
    def raw(self) -> Any:
        """Return TensorRT's engine, for its inspector."""
        return self._engine

    @property
    def workspace(self) -> int:
        """Return the bytes that `lend` wants."""
        return self._engine.device_memory_size_v2

    def lend(self, address: int, size: int) -> None:
        """Lend device memory for the engine's intermediate values; engines that never run at once may share it."""
        assert address % ALIGNMENT == 0 and size >= self.workspace, (address, size, self.workspace)
        self._context.set_device_memory(address, size)

    def bind(self, name: str, address: int) -> None:
        """Set the device buffer of an input or output. Errors: BackendError."""
        if not self._context.set_tensor_address(name, address):
            raise BackendError(f"TensorRT refuses a buffer for {name!r}: {self._log.take_errors()}")
        self._bound.add(name)

    def enqueue(self, stream: int) -> None:
        """Start the plan on a CUDA stream (its handle), without waiting. Errors: DeviceError."""
        ports = {port["name"] for port in (*self.inputs, *self.outputs)}
        assert self._bound == ports, f"no buffer for {sorted(ports - self._bound)}"
        if not self._context.execute_async_v3(stream):
            raise DeviceError(f"TensorRT failed: {self._log.take_errors()}")

    def compiled(self) -> bytes:
        """Return what RTX compiled for this device, for the next process; b"" with full TensorRT, which never does."""
        return b"" if self._compiled is None else bytes(self._compiled.serialize())


def port_bytes(port: Mapping[str, Any]) -> int:
    """Return the bytes of an input's or output's buffer, from a manifest's entry."""
    size = ITEM_BYTES[port["dtype"]]
    for side in port["shape"]:
        size *= side
    return size


def _refusal(what: str, reason: str, mend: str = "") -> BackendError:
    """Return OutOfMemory where `reason` says so, else BackendError.

    TensorRT's allocator says "Cuda Runtime (out of memory)", an execution context "OutOfMemory".
    """
    if "outofmemory" in reason.lower().replace(" ", ""):
        return OutOfMemory(f"the GPU's memory is full: {what} ({reason})")
    return BackendError(f"{what}: {reason}{mend}")


def _log(trt: Any) -> Any:
    class Log(trt.ILogger):
        """A log that keeps the last errors, for the sentence that names them."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            amount = message.startswith("Requested amount of GPU memory")  # a warning after the error
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR) or amount:
                self._errors = [*self._errors[-2:], " ".join(message.split())]

        def take_errors(self) -> str:
            """Return the errors in one sentence, and forget them."""
            errors, self._errors = "; ".join(self._errors), []
            return errors or "it gives no reason"

    return Log()
