"""How the networks of a single file are built, read from the shapes of its tensors.

What is walked is the original's flat list of blocks; any number of levels, layers and widths will do, as long as a
level's layers are alike, which is what diffusers' configs can say.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.checkpoint.header import StoredTensor
from pipeline.checkpoint.single_file.kinds import CONTEXT, HEADED, Family
from pipeline.errors import CheckpointError

_DEPTH = 24  # layers of OpenCLIP ViT-H, SD 2's text encoder; the pictures were trained on the last but one

Place = Mapping[str, int | str]


class Shapes:
    """Holds the shapes of the tensors below one prefix of a file."""

    def __init__(self, path: Path, tensors: dict[str, StoredTensor], prefix: str) -> None:
        self.path, self.prefix = path, prefix
        self.tensors = {
            name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)
        }
        parts = (name.split(".") for name in self.tensors)
        self._modules = {".".join(words[:cut]) for words in parts for cut in range(1, len(words))}

    def has(self, module: str) -> bool:
        return module in self._modules

    def of(self, name: str, rank: int) -> tuple[int, ...]:
        """Return the shape of a tensor with `rank` dimensions. Errors: CheckpointError where there is none."""
        tensor = self.tensors.get(name)
        if tensor is None or len(tensor.shape) != rank:
            found = "is missing" if tensor is None else f"has the shape {list(tensor.shape)}"
            raise CheckpointError(f"{self.path}: {self.prefix}{name} {found}; it should have {rank} dimensions")
        return tensor.shape

    def count(self, module: str) -> int:
        """Count the modules `module`.0, `module`.1, ... that there are."""
        number = 0
        while self.has(f"{module}.{number}"):
            number += 1
        return number

    def refusal(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {self.prefix.rstrip('.')} {what}")


@dataclass(frozen=True)
class UnetLayout:
    """Holds the layout of a UNet. Tuples have one entry a level, outermost first."""

    in_channels: int
    out_channels: int
    channels: tuple[int, ...]
    layers: tuple[int, ...]
    attends_down: tuple[bool, ...]
    attends_up: tuple[bool, ...]
    depth: tuple[int, ...]  # transformer layers; where a level has none, 1
    context_width: int
    linear: bool
    guidance_width: int | None  # of LCM's guidance embedding
    middle: bool = True
    given: int | None = None  # numbers that are embedded beside the time: SDXL's text and sizes

    def places(self) -> Iterator[Place]:
        """Return the numbers that the mapping table's rows of the UNet have in this one."""
        flat, last_level = 1, len(self.channels) - 1
        for level, layers in enumerate(self.layers):
            yield from ({"down": flat + layer, "level": level, "layer": layer} for layer in range(layers))
            flat += layers
            if level != last_level:
                yield {"halve": flat, "level": level}
                flat += 1
        flat = 0
        for turned, level in enumerate(reversed(range(len(self.channels)))):
            layers = self.layers[level] + 1
            yield from ({"up": flat + layer, "turned": turned, "layer": layer} for layer in range(layers))
            flat += layers
            if level:  # the doubling comes last in the level's last layer
                yield {"double": flat - 1, "last": 2 if self.attends_up[turned] else 1, "turned": turned}


@dataclass(frozen=True)
class VaeLayout:
    image_channels: int
    latent_channels: int
    channels: tuple[int, ...]
    layers: int
    quant: bool
    post_quant: bool
    mid_attention: bool

    def places(self) -> Iterator[Place]:
        yield from ({"half": half} for half in ("encoder", "decoder"))
        for level in range(len(self.channels)):
            for layer in range(self.layers + 1):  # the decoder has one more
                yield {"level": level, "turned": len(self.channels) - 1 - level, "layer": layer}


@dataclass(frozen=True)
class TextLayout:
    vocab_size: int
    tokens: int
    width: int
    hidden: int
    layers: int
    projection: int | None = None  # of the head that gives a whole text's embedding

    def places(self) -> Iterator[Place]:
        yield from ({"layer": layer} for layer in range(self.layers))


def unet_layout(shapes: Shapes) -> UnetLayout:
    """Read a UNet's layout. Errors of all three: CheckpointError where the tensors do not make such a network."""
    levels: list[list[tuple[int, int]]] = [[]]  # of each layer: channels, transformer layers
    for flat in range(1, shapes.count("input_blocks")):
        if shapes.has(f"input_blocks.{flat}.0.op"):
            levels.append([])
        else:
            levels[-1].append(_layer(shapes, f"input_blocks.{flat}"))
    if any(len(set(level)) != 1 for level in levels):
        raise shapes.refusal("has a level whose layers differ, or one without layers")
    channels, depth = zip(*(level[0] for level in levels), strict=True)
    layers = tuple(len(level) for level in levels)
    outs = [_layer(shapes, f"output_blocks.{flat}")[1] for flat in range(shapes.count("output_blocks"))]
    if len(outs) != sum(layers) + len(layers):
        raise shapes.refusal(f"has {sum(layers)} layers on the way down and {len(outs)} on the way up")
    up = [[outs.pop(0) for _ in range(count + 1)] for count in reversed(layers)]
    middle = shapes.has("middle_block")
    mid = shapes.count("middle_block.1.transformer_blocks") if middle else max(1, depth[-1])
    if not mid or any(set(found) - {0} not in (set(), {want}) for found, want in zip(up, depth[::-1], strict=True)):
        raise shapes.refusal("has transformers of another depth on the way up than on the way down, or none within")
    if depth[-1] not in (0, mid):
        raise shapes.refusal(f"has {mid} transformer layers in its middle and {depth[-1]} beside it")
    if any(len(set(found)) != 1 for found in up):
        raise shapes.refusal("attends in some layers of a level and not in others")
    out_channels, in_channels = shapes.of("out.2.weight", 4)[0], shapes.of("input_blocks.0.0.weight", 4)[1]
    attends = [name for name in shapes.tensors if name.endswith(CONTEXT)]
    if not attends:
        raise shapes.refusal("has no transformers")
    proj_in = shapes.tensors.get(attends[0].removesuffix(CONTEXT) + "proj_in.weight")
    guided = shapes.has("time_embed.cond_proj")
    return UnetLayout(
        in_channels=in_channels,
        out_channels=out_channels,
        channels=channels,
        layers=layers,
        attends_down=tuple(n > 0 for n in depth),
        attends_up=tuple(found[0] > 0 for found in up),
        depth=(*(max(1, n) for n in depth[:-1]), mid),
        context_width=shapes.of(attends[0], 2)[1],
        linear=proj_in is not None and len(proj_in.shape) == 2,
        guidance_width=shapes.of("time_embed.cond_proj.weight", 2)[1] if guided else None,
        middle=middle,
        given=shapes.of("label_emb.0.0.weight", 2)[1] if shapes.has("label_emb") else None,
    )


def _layer(shapes: Shapes, block: str) -> tuple[int, int]:
    return shapes.of(f"{block}.0.out_layers.3.weight", 4)[0], shapes.count(f"{block}.1.transformer_blocks")


def vae_layout(shapes: Shapes) -> VaeLayout:
    levels = shapes.count("encoder.down")
    layers = [shapes.count(f"encoder.down.{level}.block") for level in range(levels)]
    if not levels or len(set(layers)) != 1 or not layers[0]:
        raise shapes.refusal(f"has {layers} layers in the levels of its encoder; latentd wants equal numbers")
    return VaeLayout(
        image_channels=shapes.of("encoder.conv_in.weight", 4)[1],
        latent_channels=shapes.of("decoder.conv_in.weight", 4)[1],
        channels=tuple(shapes.of(f"encoder.down.{level}.block.0.conv1.weight", 4)[0] for level in range(levels)),
        layers=layers[0],
        quant=shapes.has("quant_conv"),
        post_quant=shapes.has("post_quant_conv"),
        mid_attention=shapes.has("decoder.mid.attn_1"),
    )


def text_layout(shapes: Shapes, family: Family) -> TextLayout:
    if family.clip.startswith("openclip"):
        table, positions = "token_embedding.weight", "positional_embedding"
        first, found = "transformer.resblocks.0.mlp.c_fc.weight", shapes.count("transformer.resblocks")
        # The whole tower of OpenCLIP has 24 layers, one more than is used; saved back from diffusers it has 23. At
        # another depth (small models) the head that follows the last layer tells whether that layer is there.
        whole = "text_projection" in shapes.tensors and found != _DEPTH - 1
        layers = found - 1 if family is not HEADED and (found == _DEPTH or whole) else found
    else:
        root = "text_model." if shapes.has("text_model") else ""
        if twice := sorted(name for name in shapes.tensors if root and root + name in shapes.tensors):
            raise shapes.refusal(f"is there twice, below {root}* and without: {', '.join(twice[:3])}")
        table, positions = (f"{root}embeddings.{kind}_embedding.weight" for kind in ("token", "position"))
        first, layers = f"{root}encoder.layers.0.mlp.fc1.weight", shapes.count(f"{root}encoder.layers")
    if layers < 1:
        raise shapes.refusal("has no layers")
    vocab_size, width = shapes.of(table, 2)
    projection = shapes.of("text_projection", 2)[1] if family is HEADED else None
    return TextLayout(vocab_size, shapes.of(positions, 2)[0], width, shapes.of(first, 2)[0], layers, projection)
