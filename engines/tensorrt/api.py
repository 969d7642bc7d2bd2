"""The two TensorRTs behind one import, and every place where they differ.

`tensorrt_rtx` builds for a named class of GPU, without one; `tensorrt` builds for the GPU that is there, by timing on
it. What is not in this file is the same code for both, so what the one proves holds for the other.
"""

from __future__ import annotations

import ctypes
import importlib
import re
from pathlib import Path
from typing import Any

from engines.cuda import gpu
from engines.errors import BackendError
from pipeline.extras import install

FLOOR = (10, 15)  # of full TensorRT: its parser knows Attention, its plugins take the kernels' PTX (docs/engines.md)
NO_BF16 = ("sm_75",)  # Turing has no bfloat16 arithmetic


def api(rtx: bool) -> Any:
    """Import TensorRT. Errors: BackendError where it is not installed, cannot load its libraries, or is too old."""
    name = "tensorrt_rtx" if rtx else "tensorrt"
    extra = "rtx" if rtx else "gpu"
    try:
        trt = importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise BackendError(f"backend {name} needs {error.name}, which is not installed: {install(extra)}") from None
    except (ImportError, OSError) as error:
        raise BackendError(f"{name} is installed but cannot be loaded here: {error}") from None
    version = tuple(int(part) for part in re.findall(r"\d+", trt.__version__)[:2])
    if not rtx and version < FLOOR:
        raise BackendError(
            f"tensorrt {trt.__version__} is too old: latentd needs {FLOOR[0]}.{FLOOR[1]} or newer, whose parser knows "
            "the Attention operator; install tensorrt==10.15.1.29 or newer"
        )
    return trt


def choose_target(trt: Any, target: str | None, rtx: bool) -> str:
    """Return the class of GPU to build for, as "sm_89". Errors: BackendError, with what there is."""
    present = present_target()
    if not rtx:
        if present is None:
            why = gpu.why_not() or "cuInit, of the driver, fails"
            raise BackendError(
                "backend tensorrt builds on the GPU that will serve, and this machine has none; "
                f"tensorrt_rtx builds without one ({why})"
            )
        if target not in (None, present):
            raise BackendError(f"target {target!r}: backend tensorrt builds for the GPU that is here, {present}")
        return present
    known = _rtx_targets(trt)
    listed = ", ".join(known)
    wanted = target or present
    if wanted is None:
        raise BackendError(f"tensorrt_rtx needs a target where there is no GPU: one of {listed} (make engines ARCH=..)")
    if wanted not in known:
        instead = "; use backend tensorrt on a machine with that GPU" if re.fullmatch(r"sm_\d{2,3}", wanted) else ""
        raise BackendError(f"target {wanted!r}: TensorRT for RTX {trt.__version__} builds for {listed}{instead}")
    return wanted


def _rtx_targets(trt: Any) -> dict[str, Any]:
    members = trt.ComputeCapability.__members__.items()
    return {f"sm_{name[2:]}": value for name, value in members if re.fullmatch(r"SM\d+", name)}


def present_target() -> str | None:
    """Return the first GPU's class by the CUDA driver, None without a GPU."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    if cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), 0):
        return None
    # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR (cuda.h)
    for value, attribute in ((major, 75), (minor, 76)):
        if cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device):
            return None
    return f"sm_{major.value}{minor.value}"


def configure(trt: Any, config: Any, target: str, rtx: bool, timing: Path | None) -> None:
    """Set what differs between the two: RTX's target, full TensorRT's tactics that it timed before.

    With a timing cache RTX would ask for a GPU. REQUIRE_USER_ALLOCATION is RTX's: without it an execution may
    allocate, and a CUDA graph could not capture it.
    """
    if rtx:
        config.num_compute_capabilities = 1
        if not config.set_compute_capability(_rtx_targets(trt)[target], 0):
            raise BackendError(f"TensorRT for RTX {trt.__version__} refuses target {target}")
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    else:
        known = timing.read_bytes() if timing is not None and timing.is_file() else b""
        cache = config.create_timing_cache(known) or config.create_timing_cache(b"")  # damaged, or another version's
        config.set_timing_cache(cache, ignore_mismatch=False)


def timed(config: Any) -> bytes:
    """Return full TensorRT's timing cache after a build."""
    return bytes(config.get_timing_cache().serialize())
