"""Settings: flag > environment LATENTD_<NAME> > a key of one YAML file > default."""

# ruff: noqa: RUF009 - a setting's default is a field, which is what `_setting` makes

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from engines.choice import ATTENTIONS, BACKENDS, DEVICES, PIXELS
from latentd.variables import PREFIX, is_service_link, meant
from pipeline.checkpoint.single_file import PREDICTIONS
from pipeline.errors import LatentdError
from pipeline.prompt import MOST_CHUNKS
from server.caller import read_callers
from server.reading import values
from server.reading.flags import flag, read_flags


class SettingsError(LatentdError):
    """A setting cannot be read; the message names where it came from, its value and what is taken."""

    code = "INVALID_ARGUMENT"


@dataclass(frozen=True)
class _Kind:
    """Says how one setting is read, and what its help says."""

    parse: Callable[[str], Any]
    takes: str
    help: str


def _setting(default: Any, reads: values.Reads, help: str) -> Any:
    return field(default=default, metadata={"kind": _Kind(*reads, help)})


@dataclass(frozen=True)
class Settings:
    model: Path = _setting(
        Path(__file__).parent.parent / "demo" / "small-things",
        values.PATH,
        "a checkpoint: a folder in diffusers' layout or a .safetensors file; without it, the demo model",
    )
    prediction: str = _setting(
        "auto",
        values.choice("auto", *PREDICTIONS),
        "of a single file; auto is what it tells, or the settings beside it",
    )
    backend: str = _setting(
        "auto",
        values.choice("auto", *BACKENDS),
        "what runs the networks; tensorrt and tensorrt_rtx are experimental: no GPU has run them yet",
    )
    device: str = _setting(
        "auto", values.choice(*DEVICES), "where; auto is an NVIDIA GPU if backend torch can use one here"
    )
    precision: str = _setting(
        "auto", values.choice("auto", "f16", "bf16", "f32"), "auto is f16 on a GPU, bf16 where the CPU has it, else f32"
    )
    pixels: str = _setting(
        "auto",
        values.choice(*PIXELS),
        "exact: a request's pixels do not depend on its company. fast: they may, in the last bits. "
        "auto is fast on a GPU; on a CPU all are exact",
    )
    attention: str = _setting(
        "native",
        values.choice(*ATTENTIONS),
        "of backend tensorrt's plans (experimental): TensorRT's own, or our kernels inside",
    )
    host: str = _setting(
        "127.0.0.1", values.HOST, "address to listen on; others than loopback take --keys or --insecure"
    )
    http_port: int | None = _setting(
        8000,
        (values.port_or_off, values.PORT[1] + ", or off"),
        "the page and the HTTP APIs; 0 takes a free one and prints it",
    )
    allow_host: tuple[str, ...] = _setting(
        (),
        (values.names, "names as images.example.org,localhost"),
        "under which browsers may reach the HTTP port, beside this machine's: a proxy's, say",
    )
    grpc_port: int = _setting(8001, values.PORT, "0 takes a free one and prints it")
    metrics_port: int | None = _setting(
        8002, (values.port_or_off, values.PORT[1] + ", or off"), "Prometheus metrics; 0 takes a free one and prints it"
    )
    seats: int = _setting(8, values.number(1, 1024), "pictures of a size that are made at once; more wait their turn")
    sizes: tuple[tuple[int, int], ...] = _setting(
        (), (values.sizes_of, "sizes as 512x512,768x512"), "width x height served; without it, the model's own size"
    )
    chunks: int = _setting(
        1,
        values.most(values.number(1, MOST_CHUNKS)),  # LATENTD_CHUNKS=1,2 is `make engines`' too
        "make the engines of prompts of up to so many times the text encoder's length at start, for each size; those "
        "of longer ones are made when the first such prompt comes",
    )
    style_adapter: Path | None = _setting(
        None, values.PATH, "an IP-Adapter's .safetensors file; without it, the one in ip_adapter/ of the model's folder"
    )
    style_encoder: Path | None = _setting(
        None, values.PATH, "the folder of its image encoder; without it, image_encoder/ or judge/ of the model's folder"
    )
    judge: Path | None = _setting(
        None, values.PATH, "a CLIPModel's folder, which ranks pictures; without it, judge/ of the model's folder"
    )
    loras: Path | None = _setting(
        None, values.PATH, "a folder of LoRAs (.safetensors), which requests name; without it the model takes none"
    )
    threads: int = _setting(0, values.number(0, 1024), "0 is as many as the process may use (affinity, cgroup)")
    grace: float = _setting(
        30.0, values.number(0, 86400, whole=False), "seconds that requests have to end after SIGTERM"
    )
    watchdog: float = _setting(
        300.0,
        values.number(0, 86400, whole=False),
        "seconds without a step or a picture, while there is work, after which the device is stuck and the process "
        "ends (at least ten times what a full step takes); 0 waits for ever",
    )
    queue_jobs: int = _setting(256, values.number(1, 1_000_000), "requests that may wait")
    queue_seconds: float = _setting(60.0, values.number(0, 86400, whole=False), "predicted wait that is still accepted")
    max_prompt: int = _setting(4096, values.number(1, 1_000_000), "characters of a prompt")
    max_steps: int = _setting(150, values.number(1, 1000), "steps of a request")
    max_guidance: float = _setting(30.0, values.number(1, 1000, whole=False), "guidance of a request")
    max_images: int = _setting(8, values.number(1, 64), "pictures of a request")
    priority_callers: tuple[str, ...] = _setting(
        (),
        (read_callers, "addresses and networks as 10.0.0.7,10.1.0.0/16,::1, and local for Unix sockets"),
        "who may ask for a priority above 0 (interactive is 1); without it, nobody",
    )
    max_message: int = _setting(16 << 20, values.number(1 << 10, 1 << 30), "bytes of a request's message")
    max_calls: int = _setting(
        1024, values.number(1, 1_000_000), "calls that are open at once; health is checked beside them"
    )
    max_calls_caller: int = _setting(
        512, values.number(1, 1_000_000), "of them, those from one address (a proxy is one)"
    )
    max_connections: int = _setting(4096, values.number(1, 1_000_000), "gRPC connections, as far as descriptors allow")
    max_streams: int = _setting(
        512, values.number(1, 1_000_000), "calls of a connection; a client's library waits with more"
    )
    unread_seconds: float = _setting(
        30.0,
        values.number(0, 86400, whole=False),
        "seconds after which a client that does not take a message is given up, and one more for each 32 KiB of it; "
        "0 waits for ever",
    )
    idle_seconds: float = _setting(
        60.0,
        values.number(0, 86400, whole=False),
        "seconds after which a connection without a call is ended; 0 keeps it",
    )
    insecure: bool = _setting(False, values.ON_OFF, "listen beyond loopback without keys")
    tls_cert: Path | None = _setting(
        None, values.PATH, "a certificate with its chain, in PEM; with tls_key, every port but health_port speaks TLS"
    )
    tls_key: Path | None = _setting(
        None, values.PATH, "its key, in PEM, not encrypted; both are read anew when they change"
    )
    tls_client_ca: Path | None = _setting(
        None,
        values.PATH,
        "authorities in PEM; clients without a certificate of one of them are turned away (mutual TLS)",
    )
    health_port: int | None = _setting(
        None, (values.port_or_off, values.PORT[1] + ", or off"), "gRPC's health alone, without TLS and keys, for probes"
    )
    keys: Path | None = _setting(
        None, values.PATH, "a YAML file of keys (latentd keys new NAME); every call then needs one, but for health"
    )
    otlp: str | None = _setting(
        None,
        values.URL,
        "where a collector takes traces, OTLP over HTTP (the extra `traces`); without it there are none",
    )
    trace_ratio: float = _setting(1.0, values.number(0, 1, whole=False), "of the requests whose caller did not decide")
    trace_prompts: bool = _setting(False, values.ON_OFF, "whether traces tell prompts; logs never do")
    admin: bool = _setting(
        False,
        values.ON_OFF,
        "let operators swap the served model; it takes admin_models, and keys of which one has admin: true",
    )
    admin_models: Path | None = _setting(
        None, values.PATH, "the folder of the models that may be swapped to, and no others"
    )
    log_format: str = _setting("text", values.choice("text", "json"), "of the log on stderr")


def read_settings(
    argv: list[str], environment: Mapping[str, str] = os.environ, prog: str = "python -m server"
) -> Settings:
    """Read the settings from `argv`, the environment and the YAML file. `prog`: the program's name in --help.

    Errors: SettingsError; SystemExit for --help, --version and flags that do not exist.
    """
    fields = dataclasses.fields(Settings)
    flags = read_flags(argv, [(f.name, f.metadata["kind"].takes, _help(f)) for f in fields], prog)
    where, file = "--config", flags.pop("config")
    if not file:
        where, file = "LATENTD_CONFIG", environment.get("LATENTD_CONFIG")
    keys = _read_file(where, Path(file), {f.name for f in fields}) if file else {}
    values = {}
    for f in fields:
        name = PREFIX + f.name.upper()
        variable = environment.get(name) or None
        if variable and is_service_link(f.name.upper(), variable):
            variable = None
        sources = ((flag(f.name), flags[f.name]), (name, variable), (f"{file}: {f.name}", keys.get(f.name)))
        for where, value in sources:
            if value is not None:
                values[f.name] = _parse(f.metadata["kind"], where, value)
                break
    return Settings(**values)


def _help(f: dataclasses.Field[Any]) -> str:
    default = "" if f.default in ("", (), None, False) else f"; default {_shown(f.default)}"
    return f"{f.metadata['kind'].help} [{f.metadata['kind'].takes}{default}]"


def _parse(kind: _Kind, where: str, value: Any) -> Any:
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    try:
        return kind.parse(text)
    except ValueError:
        local = " on this machine: nothing is downloaded" if "://" in text and kind.parse is values.path else ""
        raise SettingsError(f"{where} is {text!r}; it takes {kind.takes}{local}") from None
    except RuntimeError:  # of Path.expanduser
        raise SettingsError(f"{where} is {text!r}, and whose home folder that is nobody knows here") from None


def _read_file(where: str, path: Path, known: set[str]) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except FileNotFoundError:
        raise SettingsError(f"{where} is {str(path)!r}, and there is no such file") from None
    except OSError as error:
        raise SettingsError(f"{where} is {str(path)!r}, which cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict) or set(values) - known:
        unknown = sorted(map(str, set(values) - known)) if isinstance(values, dict) else [repr(values)[:64]]
        near = meant(unknown[0], sorted(known))
        raise SettingsError(
            f"{path} has unknown keys: {', '.join(unknown)}{near}; there are: {', '.join(sorted(known))}"
        )
    return values


def _shown(value: Any) -> str:
    if isinstance(value, Path):
        return "/".join(value.parts[-2:])
    return f"{value:g}" if isinstance(value, float) else str(value)
