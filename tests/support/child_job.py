"""A job for a process of its own: a word for each way to end."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engines.cache.disk import DiskError
from engines.errors import BackendError


def job(job: dict[str, Any], say: Callable[[str], None]) -> Any:
    """What the child does: a word for each way to end."""
    say("begun")
    match job["how"]:
        case "well":
            print("compilers write what they like")
            return {"twice": 2 * job["number"]}
        case "refused":
            raise BackendError("no such kernel")
        case "full":
            raise DiskError("write", Path("/cache/engine"), OSError(28, "No space left on device"), 12)
        case "wrong":
            raise ValueError("our own mistake")
        case "status":
            os._exit(3)
        case "signal":
            print("[E] internal error 7", file=sys.stderr, flush=True)
            os.kill(os.getpid(), job["number"])
        case "asked":
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
            return Path("/proc/self/oom_score_adj").read_text() if sys.platform == "linux" else "1000\n"
        case "forever":
            say(str(os.getpid()))
            time.sleep(600)
    return None
