"""The environment variables LATENTD_<NAME> that a program of latentd reads, and what to say of others.

One environment may serve several programs, so the names of all are known here: the command line's options, the
server's settings (server/settings.py), and those of `python -m engines` and `python -m export`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence

PREFIX = "LATENTD_"
_CLIENT = """OUTPUT NEGATIVE SIZE STEPS GUIDANCE SAMPLER SEED IMAGES LONG_PROMPT PROMPT_WEIGHTS CLIP_SKIP FORMAT PREVIEW
    GUIDANCE_START GUIDANCE_END INIT STRENGTH MASK FIT STYLE STYLE_WEIGHT LORA ORIGINAL_SIZE CROP
    TARGET_SIZE KEEP FILM SERVER MODEL
    PRIORITY TIMEOUT LIST_MODELS KEY TLS TLS_CA TLS_CLIENT_CERT TLS_CLIENT_KEY"""
_SERVER = """CONFIG MODEL PREDICTION BACKEND DEVICE PRECISION PIXELS ATTENTION HOST ALLOW_HOST HTTP_PORT GRPC_PORT
    METRICS_PORT SEATS SIZES CHUNKS STYLE_ADAPTER STYLE_ENCODER JUDGE LORAS THREADS GRACE WATCHDOG QUEUE_JOBS
    QUEUE_SECONDS PRIORITY_CALLERS MAX_PROMPT MAX_STEPS MAX_GUIDANCE MAX_IMAGES MAX_MESSAGE MAX_CALLS
    MAX_CALLS_CALLER MAX_CONNECTIONS MAX_STREAMS UNREAD_SECONDS IDLE_SECONDS LOG_FORMAT KEYS INSECURE
    TLS_CERT TLS_KEY TLS_CLIENT_CA HEALTH_PORT ADMIN ADMIN_MODELS OTLP TRACE_RATIO TRACE_PROMPTS"""
_ENGINES = "MODEL BACKEND ARCH ROWS SIZES PRECISION CHUNKS ATTENTION DEVICE PIXELS SIZE SAMPLERS STEPS PREDICTION"
_EVERYWHERE = "CACHE CACHE_GB TETHER"
NAMES = frozenset(f"{_CLIENT} {_SERVER} {_ENGINES} {_EVERYWHERE}".split())

# What Kubernetes puts into every container beside a Service: of one named latentd, LATENTD_SERVICE_HOST and
# LATENTD_PORT=tcp://10.0.0.1:8001; of one named latentd-grpc, even LATENTD_GRPC_PORT=tcp://10.0.0.1:8001.
_LINK = re.compile(r"(.*_)?SERVICE_(HOST|PORT)(_\w+)?|(.*_)?PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?")


def is_service_link(name: str, value: str) -> bool:
    """Return whether a variable (its name without the prefix) is Kubernetes' and not the user's."""
    return bool(_LINK.fullmatch(name)) or re.match(r"(tcp|udp|sctp)://", value) is not None


def strangers(environment: Mapping[str, str]) -> list[str]:
    """Write a sentence about each LATENTD_ variable that no program here reads, with the name that comes nearest."""
    unknown = [
        name
        for name, value in sorted(environment.items())
        if name.startswith(PREFIX)
        and name.removeprefix(PREFIX) not in NAMES
        and not is_service_link(name.removeprefix(PREFIX), value)
    ]
    names = sorted(NAMES - {"TETHER"})
    return [f"{name} is no variable of latentd and is ignored{meant(name, names, PREFIX)}" for name in unknown]


def meant(name: str, known: Sequence[str], prefix: str = "") -> str:
    """Write `; did you mean X?` with the name of `known` that comes nearest, nothing where none is near.

    All names have the prefix, which is left out when they are compared and in `known`.
    """
    bare = name.removeprefix(prefix)
    near = [
        candidate
        for written in (bare, bare.upper(), bare.lower())
        for candidate in difflib.get_close_matches(written, known, 1, 0.7)
    ]
    return f"; did you mean {prefix}{near[0]}?" if near else ""
