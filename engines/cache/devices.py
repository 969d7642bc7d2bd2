"""What was measured on one device: which rows agree, how long builds took. One sealed file a device.

None of it is in an engine's manifest, because an engine may be copied to another machine, which measures for itself.
What is lost or damaged is measured again.
"""

from __future__ import annotations

import contextlib
import logging
import platform
from pathlib import Path
from typing import Any

from engines.cache import disk, entries, lock
from engines.cache.sealed import Damaged, read_sealed, sealed
from engines.machine.cores import available_cores

log = logging.getLogger("latentd.devices")


def this_cpu() -> str:
    """Name the processor and the number of cores that this process may use."""
    name = ""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line for line in lines if line.startswith("model name")).partition(":")[2].strip()
    return f"{name or platform.processor() or platform.machine()}, {available_cores()} cores"


def recall(device: str, what: dict[str, Any]) -> Any:
    """Return the value remembered for `what` (JSON values), None where there is none."""
    return _facts(device).get(entries.key(**what), {}).get("value")


def remember(device: str, what: dict[str, Any], value: Any) -> None:
    """Keep the latest JSON value for `what`. Where it cannot be kept it is measured again next time."""
    path = _path(device)
    with lock.alone(path, lambda _: None):
        facts = {**_facts(device), entries.key(**what): {**what, "value": value}}
        try:
            disk.make(path.parent)
            disk.write_whole(path, sealed({"format": 1, "device": device, "facts": facts}))
        except disk.DiskError as error:
            log.warning("not kept, the next start measures again: %s", error)


def _facts(device: str) -> dict[str, dict[str, Any]]:
    path = _path(device)
    try:
        values = read_sealed(path)
        if values.get("format") != 1 or values.get("device") != device:
            raise Damaged(f"{path} is damaged (it is of another device or format)")
        return values["facts"]
    except FileNotFoundError:
        return {}
    except Damaged as error:
        log.warning("%s; measuring again", error)
        return {}


def folder() -> Path:
    return entries.cache_folder() / "devices"


def _path(device: str) -> Path:
    return folder() / f"{entries.key(device=device)}.json"
