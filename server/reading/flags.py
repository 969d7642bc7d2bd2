"""The server's command line: its flags in groups, each with what it takes, and one line for what is amiss."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from latentd import __version__
from latentd.variables import meant

# Which settings stand together in --help; what is in none comes last.
GROUPS = {
    "the model, and what runs it": (
        *("model", "prediction", "backend", "device", "precision", "pixels", "attention", "threads"),
    ),
    "what it has beside": ("style_adapter", "style_encoder", "judge", "loras"),
    "where it listens": ("host", "http_port", "grpc_port", "metrics_port", "allow_host"),
    "who may come": ("keys", "insecure", "tls_cert", "tls_key", "tls_client_ca", "health_port"),
    "what operators may do": ("admin", "admin_models"),
    "how much at once": ("seats", "sizes", "chunks", "queue_jobs", "queue_seconds", "priority_callers"),
    "what a request may ask for": ("max_prompt", "max_steps", "max_guidance", "max_images", "max_message"),
    "what clients may hold": (
        *("max_calls", "max_calls_caller", "max_connections", "max_streams", "unread_seconds", "idle_seconds"),
    ),
    "the process": ("config", "grace", "watchdog", "log_format"),
    "traces": ("otlp", "trace_ratio", "trace_prompts"),
}
_EPILOG = """\
Every flag is also an environment variable LATENTD_<NAME> (LATENTD_GRPC_PORT) and a key of the YAML file (grpc_port).
Flags win over the environment, the environment over the file. LATENTD_CACHE is the folder of what is kept between
starts (else ~/.cache/latentd), LATENTD_CACHE_GB its limit (20).
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see --help)\n")


def read_flags(argv: Sequence[str], settings: Sequence[tuple[str, str, str]], prog: str) -> dict[str, str | None]:
    """Read each setting's text, None where it is not given, and "config" beside them.

    settings: name, what it takes, and what its help says. Bad usage is one line on stderr and SystemExit(2); --help
    and --version are SystemExit(0).
    """
    parser = _Parser(
        prog=prog,
        usage="%(prog)s [MODEL] [--flag VALUE ..]",
        description="Serve a latent-diffusion model over gRPC and HTTP until SIGTERM.",
        epilog=_EPILOG,
        formatter_class=_Help,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"latentd {__version__}")
    parser.add_argument("positional", nargs="?", metavar="MODEL", help="the same as --model")
    config = ("config", "a path", "a YAML file of settings [a path]")
    known = {name: (takes, help) for name, takes, help in (*settings, config)}
    rest = tuple(name for name in known if not any(name in names for names in GROUPS.values()))
    for title, names in {**GROUPS, "more": rest}.items():
        group = parser.add_argument_group(title)
        for name in names:
            if name in known:
                takes, help = known[name]
                bare: dict[str, Any] = {"nargs": "?", "const": "on"} if takes == "on or off" else {}
                group.add_argument(flag(name), metavar=_placeholder(takes), help=help.replace("%", "%%"), **bare)
    options, extra = parser.parse_known_args(argv)
    if extra:
        flags = [text.partition("=")[0] for text in extra if text.startswith("-")]
        if not flags:
            parser.error(f"one model is served, and {extra[0]!r} is more than that")
        parser.error(f"there is no flag {flags[0]}{meant(flags[0], [flag(name)[2:] for name in known], '--')}")
    given = vars(options)
    positional = given.pop("positional")
    if positional is not None:
        if given["model"] is not None:
            parser.error("the model is given twice, as MODEL and as --model")
        given["model"] = positional
    return given


def flag(name: str) -> str:
    """Return a setting's flag as it is written on the command line: `grpc_port` is --grpc-port."""
    return "--" + name.replace("_", "-")


def _placeholder(takes: str) -> str:
    kinds = {
        "on or off": "on|off",
        "an integer": "N",
        "a number": "X",
        "a path": "PATH",
        "sizes": "WxH,..",
        "an address": "HOST",
        "names": "NAME,..",
        "addresses": "A,..",
    }
    return next((kind for start, kind in kinds.items() if takes.startswith(start)), "NAME")


class _Help(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28)
