"""What a process holds in memory, as Linux counts it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_FIELDS = {"peak": "VmHWM", "anonymous": "RssAnon", "file": "RssFile"}
_LIBRARY = re.compile(r"/(libtorch[^/]*|onnx_cpp2py_export[^/]*|libonnxruntime[^/]*|onnxruntime_pybind[^/]*)$")


@dataclass(frozen=True)
class Memory:
    """Holds what a process takes, in MB. `file` are clean pages of mapped files, which Linux can take back."""

    peak: float
    anonymous: float
    file: float


def memory_of(pid: int) -> Memory:
    status = Path(f"/proc/{pid}/status").read_text()
    values = {name: re.search(rf"^{field}:\s+(\d+) kB$", status, re.MULTILINE) for name, field in _FIELDS.items()}
    return Memory(**{name: int(match[1]) * 1024 / 1e6 for name, match in values.items() if match})


def export_libraries(pid: int) -> set[str]:
    """Return the libraries of torch, onnx and ONNX Runtime that a process has loaded."""
    mapped = (line.split(maxsplit=5)[-1] for line in Path(f"/proc/{pid}/maps").read_text().splitlines())
    return {match[1] for path in mapped if (match := _LIBRARY.search(path))}
