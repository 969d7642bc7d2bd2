"""OpenVINO's entry, one for the whole process and until its end."""

from __future__ import annotations

import functools

import openvino as ov


@functools.cache
def core() -> ov.Core:
    """Return the process's one Core, which compiles for any thread and outlives every engine.

    A Core gives the thread that first uses its CPU plugin a stack for signals, and frees that stack when it goes.
    When the first of two goes first, or one goes in another thread, the thread is left with a stack that is no longer
    mapped, and its next signal kills the process without a word (SigAltStackSetup in OpenVINO's src/plugins/intel_cpu;
    seen with 2026.4.1). A server loads in threads that get no signals, so it hit who loads in the main thread.
    """
    return ov.Core()


def has_bf16() -> bool:
    """Return whether this CPU multiplies bfloat16 natively."""
    return "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
