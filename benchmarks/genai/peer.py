"""OpenVINO GenAI as a peer of benchmarks.loading: its model folder from the same weights, and one run of it.

The folder is what optimum-intel's export writes: OpenVINO IR with the tensor names that GenAI wants, from the same
graphs and weights as ours; float16 is compressed by OpenVINO itself from the float32 weights, to the same numbers.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import openvino as ov
from openvino import opset13 as ops
from openvino.preprocess import PrePostProcessor

import graphs
from engines.cpu.bound import bound
from engines.cpu.core import core
from pipeline.checkpoint.opened import open_checkpoint
from pipeline.checkpoint.parts import SECOND

# With the tokenizer's own converter, which needs transformers, and no torch.
_TOKENIZER = """
import os, sys
os.environ["CI"] = "1"
import openvino, openvino_tokenizers, transformers
tokenizer = transformers.CLIPTokenizer.from_pretrained(sys.argv[1])
openvino.save_model(openvino_tokenizers.convert_tokenizer(tokenizer), sys.argv[2])
"""
_ADDED = {"pooled": "text_embeds", "sizes": "time_ids"}  # inputs of SDXL's UNet
NEEDS = "openvino-genai==2026.4.1.0 'openvino-tokenizers[transformers]==2026.4.1.0'"


def is_there(python: str) -> bool:
    """Return whether the interpreter can import what this needs."""
    words = "import importlib.util as u; raise SystemExit(not all(map(u.find_spec, %r)))"
    needed = ("openvino_genai", "openvino_tokenizers", "transformers")
    return subprocess.run([python, "-c", words % (needed,)], check=False).returncode == 0


def write_folder(out: Path, checkpoint: Path, dtype: str, python: str) -> Path:
    """Write the pipeline of a folder with float32 weights, itself in `dtype`, "float16" or "float32"."""
    shutil.rmtree(out, ignore_errors=True)
    opened = open_checkpoint(checkpoint)
    for network in ("text_encoder", "unet", "vae_decoder"):
        model = bound(core(), opened, network)
        model.validate_nodes_and_infer_types()
        two = network == "text_encoder" and opened.spec.text_2 is not None
        for part, each in (_parted(model) if two else {network: _named(model, network)}).items():
            (out / part).mkdir(parents=True)
            ov.save_model(each, out / part / "openvino_model.xml", compress_to_fp16=dtype == "float16")
            folder = SECOND if part == SECOND else graphs.part_of(network)
            config = json.loads((checkpoint / folder / "config.json").read_bytes())
            # Our decoder's graph scales the latents itself.
            config |= {"scaling_factor": 1.0} if network == "vae_decoder" else {}
            # GenAI takes the context from the output behind so many layers and one; ours has no others.
            config |= {"num_hidden_layers": 0} if two else {}
            (out / part / "config.json").write_text(json.dumps(config))
    shutil.copytree(checkpoint / "scheduler", out / "scheduler")
    shutil.copy(checkpoint / "model_index.json", out)
    for name in ("tokenizer", "tokenizer_2")[: 1 + (opened.spec.text_2 is not None)]:
        (out / name).mkdir()
        words = [str(checkpoint / name), str(out / name / "openvino_tokenizer.xml")]
        subprocess.run([python, "-c", _TOKENIZER, *words], check=True, stderr=subprocess.DEVNULL)
    return out


def _parted(model: ov.Model) -> dict[str, ov.Model]:
    """Return SDXL's two text encoders, which are one network here: each gives what it pools, and its context."""
    ids = ops.parameter([-1, model.input(0).partial_shape[2]], ov.Type.i64)
    ids.output(0).get_tensor().set_names({"input_ids"})
    alone = ops.unsqueeze(ids, ops.constant(1))
    model.input(0).replace(ops.concat([alone, alone], 1).output(0))
    first, second = (
        each.get_source_output() for each in model.output("context").get_node().input_value(0).node.inputs()
    )
    pooled = model.output("pooled").get_node().input_value(0)
    given = {"text_encoder": [first, first], SECOND: [pooled, second]}
    return {
        part: ov.Model(outputs, [ids])  # pyright: ignore[reportGeneralTypeIssues]
        for part, outputs in given.items()
    }


def _named(model: ov.Model, network: str) -> ov.Model:
    if network == "text_encoder":  # without the second output, which serves clip_skip
        model = ov.Model([model.get_results()[0]], model.get_parameters())  # pyright: ignore[reportGeneralTypeIssues]
        model.input(0).get_tensor().set_names({"input_ids"})
    if network == "unet":
        model.input("context").get_tensor().set_names({"encoder_hidden_states"})
        for ours, theirs in _ADDED.items():
            if any(ours in each.get_names() for each in model.inputs):
                model.input(ours).get_tensor().set_names({theirs})
        steps = PrePostProcessor(model)
        steps.input("timestep").tensor().set_element_type(ov.Type.i64)
        model = steps.build()
    return model


def run(python: str, folder: Path, side: int) -> dict[str, Any]:
    """Load, compile and draw a picture of one step in a process of its own; returns what run.py prints."""
    script = str(Path(__file__).with_name("run.py"))
    words = [python, script, str(folder), str(side), str(time.monotonic())]
    return json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
