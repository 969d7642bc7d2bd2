"""What Triton needs beside itself when it first launches a kernel: a C compiler, Python's header, a folder to write.

It compiles its launcher with them, once, into its cache (triton/runtime/build.py). It is looked at before a model is
loaded, because the first kernel runs minutes later. Triton itself is not loaded for it.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import logging
import os
import re
import shutil
import sys
import sysconfig
from pathlib import Path

from engines.errors import BackendError
from pipeline.extras import install

OLDEST, NEWEST = (3, 6), (3, 7)  # the compilers that the kernels' tests run under
_WANTED = 64 << 20  # bytes that compiled kernels may take: a guess, a hundred variants of some hundred kB each

MEND = f"apt-get install gcc python3-dev (of this Python: python{sys.version_info[0]}.{sys.version_info[1]}-dev)"
MEND_CACHE = "set TRITON_CACHE_DIR to a folder that can be written and has room"
MEND_VERSION = f"{install('kernels')} has the version that the kernels are tested with"
NO_COMPILER = "Triton compiles its launcher with a C compiler, and there is none: apt-get install gcc, or set CC to one"

log = logging.getLogger("latentd.cuda")


def installed() -> str:
    """Return Triton's version, "none" where it is not installed; NVIDIA's containers call it pytorch-triton."""
    for name in ("triton", "pytorch-triton"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "none"


def cache_folder() -> Path:
    """Return the folder where Triton keeps what it compiled."""
    if chosen := os.environ.get("TRITON_CACHE_DIR"):
        return Path(chosen)
    return Path(os.environ.get("TRITON_HOME") or os.path.expanduser("~"), ".triton", "cache")


def check_toolchain() -> None:
    """Check that Triton can compile and launch here. Errors: BackendError, naming the package or the variable."""
    if importlib.util.find_spec("triton") is None:
        raise BackendError(f"the kernels need triton, which is not installed: {install('kernels')}")
    version = installed()
    if match := re.match(r"(\d+)\.(\d+)", version):
        number = int(match[1]), int(match[2])
        if number < OLDEST:
            raise BackendError(f"triton {version} is too old, the kernels are for 3.6 and 3.7: {MEND_VERSION}")
        if number > NEWEST:
            _warn_of(version)
    folder = cache_folder()
    if any(folder.glob("*/cuda_utils*")):
        return  # its launcher has been compiled: a cache that was shipped, perhaps read-only and without a compiler
    _check_compiler()
    _check_folder(folder)


@functools.cache
def _warn_of(version: str) -> None:
    log.warning("triton %s is newer than 3.7, the last one that the kernels were tested with", version)


def _check_compiler() -> None:
    compiler = os.environ.get("CC")
    if compiler is not None and shutil.which(compiler) is None:
        raise BackendError(
            f"CC is {compiler!r}, and there is no such program; Triton needs a C compiler: unset CC, or {MEND}"
        )
    if compiler is None and not (shutil.which("gcc") or shutil.which("clang")):
        raise BackendError(NO_COMPILER)
    scheme = sysconfig.get_default_scheme()
    include = sysconfig.get_paths("posix_prefix" if scheme == "posix_local" else scheme)["include"]
    others = os.pathsep.join(os.environ.get(name, "") for name in ("CPATH", "C_INCLUDE_PATH")).split(os.pathsep)
    if not any(Path(place, "Python.h").is_file() for place in (include, *others) if place):
        raise BackendError(f"Triton compiles its launcher against {include}/Python.h, which is not there: {MEND}")


def _check_folder(folder: Path) -> None:
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise BackendError(f"Triton keeps its kernels in {folder}, and {there} cannot be written: {MEND_CACHE}")
    if (free := shutil.disk_usage(there).free) < _WANTED:
        raise BackendError(
            f"Triton keeps its kernels in {folder}, where {free >> 20} MB are free and {_WANTED >> 20} MB may be needed"
            f": {MEND_CACHE}"
        )
