"""The names of full TensorRT's Python API, from its bindings, without its libraries: tests/engines/tensorrt/names.txt.

    python -m pip download --no-deps -d wheels tensorrt-cu13-bindings==11.4.0.106
    python -m tests.support.tensorrt_names wheels/*.whl > tests/engines/tensorrt/names.txt

The bindings (1.2 MB a version) need three libraries of 2 GB only to call into them. Empty ones with the nine entry
points that the bindings name, made by the C compiler here, are enough to import them and to list what they have.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

# What engines/tensorrt use, by class.
CLASSES = [
    "Builder",
    "BuilderFlag",
    "DataType",
    "ExecutionContextAllocationStrategy",
    "IAttention",
    "IAttentionInputLayer",
    "IBuilderConfig",
    "ICudaEngine",
    "IExecutionContext",
    "IHostMemory",
    "ILayer",
    "ILogger",
    "INetworkDefinition",
    "IProgressMonitor",
    "IRuntimeConfig",
    "IStreamWriter",
    "ITensor",
    "ITimingCache",
    "LayerType",
    "NetworkDefinitionCreationFlag",
    "OnnxParser",
    "ParserError",
    "ProfilingVerbosity",
    "Runtime",
    "TensorIOMode",
]
_ENTRIES = [
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
]
_LIST = """
import json, sys
import tensorrt_bindings as trt
classes = json.loads(sys.argv[1])
found = {name: sorted(dir(getattr(trt, name))) for name in classes if hasattr(trt, name)}
print(json.dumps({"version": trt.__version__, "module": sorted(dir(trt)), "classes": found}))
"""


def names(wheel: Path) -> list[str]:
    """Lines "version class: members" of one wheel; "trt" is the module itself."""
    major = re.search(r"-(\d+)\.", wheel.name)
    assert major is not None, wheel
    with tempfile.TemporaryDirectory() as folder:
        zipfile.ZipFile(wheel).extractall(folder)
        source = Path(folder) / "empty.c"
        source.write_text("".join(f"void *{entry}(void) {{ return 0; }}\n" for entry in _ENTRIES))
        for library in ("nvinfer", "nvinfer_plugin", "nvonnxparser"):
            name = f"lib{library}.so.{major.group(1)}"
            command = ["cc", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", f"{folder}/{name}", str(source)]
            subprocess.run(command, check=True)
        env = {**os.environ, "LD_LIBRARY_PATH": folder, "PYTHONPATH": folder}
        command = [sys.executable, "-c", _LIST, json.dumps(CLASSES)]
        told = json.loads(subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout)
    listed = {"trt": [name for name in told["module"] if name in CLASSES], **told["classes"]}
    return [
        f"{told['version']} {kind}: {' '.join(name for name in members if not name.startswith('_'))}"
        for kind, members in sorted(listed.items())
    ]


def read_names(path: Path) -> dict[str, dict[str, set[str]]]:
    """Version -> class -> members."""
    found: dict[str, dict[str, set[str]]] = {}
    for line in path.read_text().splitlines():
        head, _, members = line.partition(": ")
        version, kind = head.split()
        found.setdefault(version, {})[kind.rstrip(":")] = set(members.split())
    return found


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        print("\n".join(names(Path(argument))))
