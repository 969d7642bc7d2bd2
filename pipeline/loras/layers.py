"""The layers of a model that a LoRA (Hu et al. 2021) may add to, and what its two matrices are called as inputs.

A layer is the path of a linear layer, or of a 1x1 convolution, below its network. Its weight W [out, in] acts as
W + B A then, with A [rank, in] and B [out, rank], which are inputs of the network's graph.
"""

from __future__ import annotations

from pipeline.networks import TextSpec, UnetSpec

Layers = dict[str, tuple[int, int]]  # path: numbers that come out of it and go in

SECOND = "text_encoder_2."  # before the path of each layer of SDXL's second text encoder
RANKS = (32, 64, 128, 256)  # that requests are filled up to; a network that is run with one is another lane


def unet_layers(unet: UnetSpec) -> Layers:
    """List the layers of the transformers: what goes in and out of each, attentions, feed-forward."""
    layers: Layers = {}
    for attention, width in unet.text_layers:
        block = attention.rpartition(".")[0]
        transformer, number = block.rsplit(".transformer_blocks.", 1)
        if number == "0":
            layers[f"{transformer}.proj_in"] = layers[f"{transformer}.proj_out"] = (width, width)
        for name, seen in (("attn1", width), ("attn2", unet.context_width)):
            for kind, size in (("to_q", width), ("to_k", seen), ("to_v", seen), ("to_out.0", width)):
                layers[f"{block}.{name}.{kind}"] = (width, size)
        layers[f"{block}.ff.net.0.proj"] = (8 * width, width)
        layers[f"{block}.ff.net.2"] = (width, 4 * width)
    return layers


def merged(unet: UnetSpec) -> set[str]:
    """List the layers whose W + B A takes fewer multiplications than (x A^T) B^T, in a picture of the usual size.

    With n positions that is in * out against n (in + out), times the rank. Measured on SD 1.5's shape, where the two
    outer levels are such: LoRAs of rank 32 cost 3% of a row in place of 8, and 5% where the attentions of the next
    level do so too (OpenVINO 2026.4.1, bf16, by its counters).
    """
    blocks, layers = len(unet.channels), unet_layers(unet)
    levels = {f"down_blocks.{i}.": i for i in range(blocks)} | {
        f"up_blocks.{blocks - 1 - i}.": i for i in range(blocks)
    }
    cheaper = set[str]()
    for layer, (out, into) in layers.items():
        level = next((level for block, level in levels.items() if layer.startswith(block)), blocks - 1)
        of_text = layer.endswith(("attn2.to_k", "attn2.to_v"))  # they see the prompt: so few positions never pay
        if not of_text and (unet.sample_size >> level) ** 2 * (into + out) > into * out:
            cheaper.add(layer)
    return cheaper


def text_layers(text: TextSpec, second: TextSpec | None = None) -> Layers:
    """List the layers of a text encoder, or of SDXL's two, which are one network: attentions and MLPs."""
    layers: Layers = {}
    for before, tower in ({"": text} | ({SECOND: second} if second else {})).items():
        for number in range(tower.layers):
            layer, width = f"{before}text_model.encoder.layers.{number}", tower.width
            layers |= {f"{layer}.self_attn.{kind}_proj": (width, width) for kind in ("q", "k", "v", "out")}
            layers[f"{layer}.mlp.fc1"] = (tower.hidden, width)
            layers[f"{layer}.mlp.fc2"] = (width, tower.hidden)
    return layers


def inputs_of(layer: str) -> tuple[str, str]:
    """Return how a graph calls a layer's A and B. Without dots: those are of weights."""
    name = layer.replace(".", "/")
    return f"{name}/A", f"{name}/B"


def bucket(rank: int) -> int:
    """Return the rank that is run for one of so many. Errors: ValueError above the largest."""
    for size in RANKS:
        if rank <= size:
            return size
    raise ValueError(f"rank {rank} is above {RANKS[-1]}")
