"""The real server over random weights, which the section `serving` starts.

    python -m benchmarks.gpu.subjects.served FOLDER

Nothing is exported: the backend reads the weights, and a model's other files matter to other backends only.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from pathlib import Path

import torch

from benchmarks.gpu.frame.here import needed
from benchmarks.gpu.frame.report import Report
from benchmarks.gpu.subjects.networks import our_kernels, text, unet, vae, whole_spec
from engines.model import Model
from pipeline.checkpoint.opened import Checkpoint
from pipeline.checkpoint.weights import folder_weights
from pipeline.clip_vocabulary import END, tokenizer_files
from pipeline.source import Folder
from pipeline.tokenizer import ClipTokenizer


def write_checkpoint(report: Report, folder: Path) -> None:
    """Write weights and tokenizer, as the backend reads them: 2 GB."""
    from safetensors.torch import save_file

    (folder / "tokenizer").mkdir(parents=True, exist_ok=True)
    for name, data in tokenizer_files(pad=END, tokens=77).items():
        (folder / "tokenizer" / name).write_bytes(data)
    for name, net in (
        ("text_encoder/model", text(report)),
        ("unet/diffusion_pytorch_model", unet(report, "SD 1.5")),
        ("vae/diffusion_pytorch_model", vae(report)),
    ):
        path = folder / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        weights = {key: value.to("cpu", torch.float16).contiguous() for key, value in net.state_dict().items()}
        save_file(weights, path, metadata={"format": "pt"})


def random_model(report: Report, folder: Path) -> Model:
    """Load what the server loads: the checkpoint of `write_checkpoint` on the device."""
    spec = whole_spec(report)
    checkpoint = Checkpoint(folder, Folder(folder), spec, folder_weights(folder))
    options = {"device": "cpu", "kernels": our_kernels(report), "precision": "f32"} if report.dry else {}
    return Model(
        checkpoint,
        ClipTokenizer(folder, spec.text),
        needed("engines.cuda.backend", "CudaBackend")(checkpoint, **options),
    )


async def serve(report: Report, folder: Path, seats: int) -> None:
    from server.app import Server
    from server.settings import Settings

    server = Server(Settings(model=folder, http_port=None, grpc_port=0, metrics_port=0, seats=seats))
    await server.open()
    await server.load(lambda _: random_model(report, folder))
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    print(f"serving 127.0.0.1:{server.grpc_port}", flush=True)
    await stop.wait()
    await server.close(1)


def main() -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.gpu.subjects.served")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seats", type=int, default=16)
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args()
    device = torch.device("cpu" if options.dry_run else "cuda")
    dtype = torch.float32 if options.dry_run else torch.float16
    report = Report("serving", device, dtype, [], {}, until=float("inf"))
    asyncio.run(serve(report, options.folder, options.seats))
    return 0


if __name__ == "__main__":
    sys.exit(main())
