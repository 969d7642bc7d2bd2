"""Lists what goes into each network and comes out of it: names, shapes and types, in one place.

Who exports a graph, builds or runs an engine, or makes inputs up for a test reads them here. A side whose length
differs from run to run is a word in a shape; `sides` gives the lengths that serving a picture takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

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


def inputs(network: str, spec: Spec) -> list[Port]:
    """Return the inputs of `network` (one of graphs.NETWORKS) but its weights, in the order of its graph."""
    text, unet, vae = spec.text, spec.unet, spec.vae
    match network:
        case "text_encoder":
            return [Port("ids", ("rows", text.tokens), "int64")]
        case "unet":
            ports = [
                Port("sample", ("rows", unet.in_channels, "h", "w")),
                Port("timestep", ("rows",)),
                Port("context", ("rows", "tokens", unet.context_width)),
            ]
            return [*ports, Port("guidance", ("rows",))] if unet.guidance_width else ports
        case "vae_decoder":
            return [Port("latents", ("rows", vae.latent_channels, "h", "w"))]
        case "vae_encoder":
            return [Port("picture", ("rows", vae.image_channels, "height", "width"))]
    raise KeyError(network)


def outputs(network: str, spec: Spec) -> list[str]:
    """Return the names of what `network` gives; `skipped` are contexts without the text encoder's last layers."""
    match network:
        case "text_encoder":
            return ["context", "skipped"] if spec.text.skips else ["context"]
        case "unet":
            return ["out"]
        case "vae_decoder":
            return ["picture"]
        case "vae_encoder":
            return ["moments"]
    raise KeyError(network)


def sides(spec: Spec, width: int, height: int, rows: int = 1, chunks: int = 1) -> dict[str, int]:
    """Return the sides of pictures of `width` x `height` pixels and prompts of `chunks` times the encoder's length."""
    _, h, w = spec.latent_shape(width, height)
    return {"rows": rows, "tokens": chunks * spec.text.tokens, "h": h, "w": w, "height": height, "width": width}


def shapes(network: str, spec: Spec, sides: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each input by its name."""
    return {port.name: port.sized(sides) for port in inputs(network, spec)}
