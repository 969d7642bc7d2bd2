"""Lists what goes into each network and comes out of it: names, shapes and types, in one place.

Who exports a graph, builds or runs an engine, or makes inputs up for a test reads them here. A side whose length
differs from run to run is a word in a shape; `sides` gives the lengths that serving a picture takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from pipeline.conditions.sizes import SIZES
from pipeline.loras.layers import RANKS, Layers, inputs_of, text_layers, unet_layers
from pipeline.networks import ClipSpec, TextSpec
from pipeline.spec import Spec


@dataclass(frozen=True)
class Port:
    """An input of a network."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str = "float32"  # as numpy calls it

    def sized(self, sides: Mapping[str, int]) -> tuple[int, ...]:
        """Return the shape in numbers. Errors: KeyError for a side that `sides` lacks."""
        return tuple(sides[side] if isinstance(side, str) else side for side in self.shape)


def inputs(network: str, spec: Spec | ClipSpec) -> list[Port]:
    """Return the inputs of `network` (one of graphs.NETWORKS or TOWERS) but its weights, in the order of its graph."""
    if network == "text_encoder":
        both = () if isinstance(spec, ClipSpec) or spec.text_2 is None else (2,)
        ids = Port("ids", ("rows", *both, _text(spec).tokens), "int64")
        return [ids, *adapters(adapted_layers(network, spec))]
    if isinstance(spec, ClipSpec):
        if network != "vision_tower":
            raise KeyError(network)
        return [Port("pixels", ("rows", 3, spec.vision.side, spec.vision.side))]
    unet, vae = spec.unet, spec.vae
    match network:
        case "unet":
            shapes: dict[str, tuple[int | str, ...]] = {
                "guidance": (),
                "style": (unet.style_tokens, unet.context_width),
                "style_weight": (),
                "pooled": (unet.pooled_width,),
                "sizes": (SIZES,),
            }
            return [
                Port("sample", ("rows", unet.in_channels, "h", "w")),
                Port("timestep", ("rows",)),
                Port("context", ("rows", "tokens", unet.context_width)),
                *(Port(name, ("rows", *shapes[name])) for name in unet.conditions),
                *adapters(adapted_layers(network, spec)),
            ]
        case "vae_decoder":
            return [Port("latents", ("rows", vae.latent_channels, "h", "w"))]
        case "vae_encoder":
            return [Port("picture", ("rows", vae.image_channels, "height", "width"))]
    raise KeyError(network)


def adapted_layers(network: str, spec: Spec | ClipSpec) -> Layers:
    """Return the layers of `network` that LoRAs add to; none where it was not asked for."""
    if network == "text_encoder" and _text(spec).adapted:
        return text_layers(_text(spec), spec.text_2 if isinstance(spec, Spec) else None)
    if network == "unet" and isinstance(spec, Spec) and spec.unet.adapted:
        return unet_layers(spec.unet)
    return {}


def adapted(spec: Spec, takes: bool = True) -> Spec:
    """Return the spec of the same networks that take LoRAs, or do not."""
    text, second = replace(spec.text, adapted=takes), spec.text_2 and replace(spec.text_2, adapted=takes)
    return replace(spec, unet=replace(spec.unet, adapted=takes), text=text, text_2=second)


def adapters(layers: Layers) -> list[Port]:
    """Return the inputs of layers that LoRAs add to, in pairs: A [rows, rank, in] and B [rows, out, rank]."""
    return [
        port
        for layer, (out, into) in layers.items()
        for port in (
            Port(inputs_of(layer)[0], ("rows", "rank", into)),
            Port(inputs_of(layer)[1], ("rows", out, "rank")),
        )
    ]


def outputs(network: str, spec: Spec | ClipSpec) -> list[str]:
    """Return the names of what `network` gives; `skipped` are contexts without the text encoder's last layers."""
    if network == "text_encoder":
        text = spec if isinstance(spec, Spec) else _text(spec)
        pooled = isinstance(spec, Spec) and spec.text_2 is not None
        return ["context", *["skipped"] * bool(text.skips), *["pooled"] * pooled]
    return {
        "unet": ["out"],
        "vae_decoder": ["picture"],
        "vae_encoder": ["moments"],
        "vision_tower": ["embedding"],
    }[network]


def _text(spec: Spec | ClipSpec) -> TextSpec:
    assert spec.text is not None
    return spec.text


def sides(spec: Spec, width: int, height: int, rows: int = 1, chunks: int = 1, rank: int = 0) -> dict[str, int]:
    """Return the sides of pictures of `width` x `height` pixels and prompts of `chunks` times the encoder's length.

    `rank`: of LoRAs, where the model takes them; 0: the least.
    """
    _, h, w = spec.latent_shape(width, height)
    sides = {"rows": rows, "tokens": chunks * spec.text.tokens, "h": h, "w": w, "height": height, "width": width}
    return {**sides, "rank": rank or RANKS[0]}


def shapes(network: str, spec: Spec | ClipSpec, sides: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each input by its name."""
    return {port.name: port.sized(sides) for port in inputs(network, spec)}
