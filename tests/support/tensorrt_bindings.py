"""TensorRT's genuine Python bindings without TensorRT: what can be proven of our use of them where it cannot run.

Its libraries are not to be had here, but the bindings (`tensorrt_bindings`, one wheel of 1.1 MB a version) ask them
for nine functions only. A stand-in with these makes the module importable, with every class, property and enumeration
of the version, and with all of `tensorrt.plugin`, which is Python. `make setup` puts the wheels beside the venv's
packages (`tensorrt-10.15`, `tensorrt-11.4`), as it does with the older Triton.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
VERSIONS = {"10.15": "10", "11.4": "11"}  # the folder's suffix -> the libraries' major version
FUNCTIONS = (
    *("createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL"),
    *("createNvOnnxParser_INTERNAL", "createNvOnnxParserRefitter_INTERNAL", "getNvOnnxParserVersion"),
    *("getPluginRegistry", "getBuilderPluginRegistry", "initLibNvInferPlugins"),
)
# The bindings under the name by which everybody imports them.
PREFIX = "import sys, tensorrt_bindings; sys.modules['tensorrt'] = tensorrt_bindings\n"


def stand_in(folder: Path) -> Path:
    """A folder with libraries that have the nine functions, each of which returns null."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler for the stand-in of TensorRT's libraries")
    source = folder / "stand_in.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in FUNCTIONS))
    for major in VERSIONS.values():
        for library in ("nvinfer", "nvinfer_plugin", "nvonnxparser"):
            name = f"lib{library}.so.{major}"
            command = [compiler, "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(folder / name), str(source)]
            subprocess.run(command, check=True, capture_output=True)
    return folder


def run_with_bindings(version: str, libraries: Path, code: str) -> str:
    """What `code` prints in a process where `import tensorrt` gives the bindings of `version`, on top of this tree."""
    wheel = Path(sys.prefix, f"tensorrt-{version}")
    if not wheel.is_dir():
        pytest.skip(f"the bindings of TensorRT {version} are not installed: make setup")
    environment = os.environ | {
        "LD_LIBRARY_PATH": str(libraries),
        "PYTHONPATH": os.pathsep.join([str(wheel), str(ROOT)]),
        "CUDA_VISIBLE_DEVICES": "",
    }
    environment.pop("TRITON_INTERPRET", None)
    ran = subprocess.run(
        [sys.executable, "-c", PREFIX + code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout
