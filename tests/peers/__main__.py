"""Every client of the Open Inference Protocol that we know, unmodified, against the embedded model: `make peers`.

Each stands in an environment of its own, which the Makefile has made. What they said is docs/peers.md, written anew.
"""

from __future__ import annotations

import base64
import datetime
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.server_process import ROOT, process

HERE = Path(__file__).parent
VENV = Path(sys.prefix)
MODEL = "small-things"
SERVICE = "inference.GRPCInferenceService"


@dataclass(frozen=True)
class Peer:
    """A client: its command, in which {} is the server's address, and what its output must satisfy."""

    name: str
    does: str
    command: list[str]
    passes: Callable[[str], bool]
    environment: dict[str, str] = field(default_factory=dict)
    status: int = 0
    shown: str = ""  # lines of its output that are worth a reader's time


def same(*, kinds: int) -> Callable[[str], bool]:
    """A script's JSON: the same two pictures however they were asked for, and the refusal of 999 steps."""

    def check(output: str) -> bool:
        told = json.loads(output)
        pictures = [value for value in told.values() if isinstance(value, list) and len(value[0]) == 64]
        assert len(pictures) == kinds and all(len(one) == 2 for one in pictures), told
        PICTURES.extend(pictures)
        return all(one == PICTURES[0] for one in PICTURES) and "steps is 999; it must be 1 to 150" in output

    return check


PICTURES: list[list[str]] = []  # of all clients


def perf_analyzer(does: str, *options: str, status: int = 0, passes: Callable[[str], bool] | None = None) -> Peer:
    data = ["--input-data", "deploy/perf-analyzer.json"] if status == 0 else []
    measured = ["--measurement-interval", "4000", "--stability-percentage", "900", "--max-trials", "4"]
    folder = VENV / "perf-analyzer"
    libraries = [folder / "nvidia/cuda_runtime/lib", *folder.glob("usr/lib/*")]
    return Peer(
        "perf_analyzer 2.51.0",
        does,
        [str(folder / "bin/perf_analyzer"), "-i", "grpc", "-u", "{}", *options, *data, *measured],
        passes or (lambda output: "Successful request count" in output and "Failed" not in output),
        {"LD_LIBRARY_PATH": ":".join(map(str, libraries))},
        status,
        r"(Client|Server|Request count|Throughput|Avg latency|Inference count|Execution count|Avg request latency):.*"
        r"|.* had error: .*",
    )


def buf(does: str, method: str, *options: str, passes: Callable[[str], bool], shown: str = "") -> Peer:
    command = [str(VENV / "buf/bin/buf"), "curl", "--protocol", "grpc", "--http2-prior-knowledge"]
    return Peer("buf 1.75.0", does, [*command, *options, f"http://{{}}{method}"], passes, shown=shown)


def peers() -> Iterator[Peer]:
    python, apart = sys.executable, {"PYTHONPATH": str(VENV / "tritonclient")}
    yield Peer(
        "tritonclient 2.73.0",
        "infer, async_infer, stream, asyncio; metadata, configuration, statistics, index",
        [python, str(HERE / "triton.py"), "{}", MODEL],
        same(kinds=5),
        apart,
    )
    yield Peer(
        "kserve 0.21.0",
        "InferenceGRPCClient: health, infer with raw and with typed contents",
        [str(VENV / "kserve/bin/python"), str(HERE / "kserve_client.py"), "{}", MODEL],
        same(kinds=2),
    )
    yield Peer(
        "@grpc/grpc-js 1.14.7",
        "stubs from our .proto: ModelInfer, ModelStreamInfer",
        ["node", str(HERE / "grpc_js.cjs"), "{}", MODEL],
        same(kinds=2),
        {"NODE_PATH": str(VENV / "grpc-js/node_modules")},
    )
    prompt = base64.b64encode(b"a red apple").decode()
    message = {
        "modelName": MODEL,
        "inputs": [{"name": "prompt", "datatype": "BYTES", "shape": [1], "contents": {"bytesContents": [prompt]}}],
    }
    for version, shown in (("grpc-v1", r"(inference|latentd).*"), ("grpc-v1alpha", "")):
        reflect = ("--reflect-protocol", version)
        yield buf(
            f"curl finds the services by reflection ({version})",
            "",
            *(*reflect, "--list-methods"),
            passes=lambda output: f"{SERVICE}/ModelStreamInfer" in output,
            shown=shown,
        )
        yield buf(
            f"curl has a picture made, its messages known from {version}",
            f"/{SERVICE}/ModelInfer",
            *(*reflect, "-d", json.dumps(message)),
            passes=lambda output: len(json.loads(output)["rawOutputContents"][0]) > 1000,
        )
    yield perf_analyzer("two at once", "-m", MODEL, "--concurrency-range", "2")
    yield perf_analyzer(
        "at random (Poisson), one a second",
        "-m",
        MODEL,
        "--request-rate-range",
        "1",
        "--request-distribution",
        "poisson",
    )
    stream = ("-m", f"{MODEL}.stream", "--streaming", "--async")
    yield perf_analyzer("on a stream, two at once", *stream, "--concurrency-range", "2")
    shapes = [part for name in ("prompt", "negative_prompt", "seed") for part in ("--shape", f"{name}:1")]
    yield perf_analyzer(
        "its own random inputs are refused",
        *("-m", MODEL, *shapes),
        status=99,
        passes=lambda output: bool(re.search(r"seed is -?\d+; it must be 0 to 4294967295", output)),
    )


def ask(peer: Peer, address: str) -> str:
    """What the client said. Ends the program where it is not what it should be."""
    command = [part.format(address) if "{}" in part else part for part in peer.command]
    environment = {**os.environ, **peer.environment}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    said = done.stdout + (done.stderr if peer.status else "")
    if done.returncode != peer.status or not peer.passes(said):
        sys.exit(f"{peer.name}, {peer.does}: status {done.returncode}\n{done.stdout}{done.stderr}")
    return said


def main() -> None:
    ports = ("--http-port", "off", "--grpc-port", "0", "--metrics-port", "0")
    rows, outputs = [], []
    with process("-m", "server", *ports) as server:
        address = server.address()
        for peer in peers():
            said = ask(peer, address)
            print(f"ok  {peer.name:22} {peer.does}", flush=True)
            rows.append(f"| {peer.name} | {peer.does} | passes |")
            if peer.shown:
                words = [
                    Path(peer.command[0]).name,
                    *(word.replace("{}", "localhost:8001") for word in peer.command[1:]),
                ]
                lines = [line.rstrip() for line in said.splitlines() if re.fullmatch(peer.shown, line.strip())]
                outputs.append("\n".join((f"$ {shlex.join(words)}", *(line[:160] for line in lines))))
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    page = HEAD.format(date=date, rows="\n".join(rows), outputs="\n\n".join(outputs))
    (ROOT / "docs/peers.md").write_text(page)
    print("docs/peers.md has what they said")


HEAD = """# Other people's clients

`make peers` has each of them, unmodified and in an environment of its own, ask a server of the embedded model over the
[Open Inference Protocol](api.md#the-open-inference-protocol), and writes this page. Last run: {date}. tritonclient,
kserve and grpc-js asked for the same pictures, and whoever asked and however, the bytes were the same. How fast it went
says little: the machine had other work.

| client | what it does | |
|---|---|---|
{rows}

```
{outputs}
```
"""

if __name__ == "__main__":
    main()
