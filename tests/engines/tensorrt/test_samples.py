"""What networks are run on to see their ranges."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engines.tensorrt.types import samples
from export.committed import under_test
from graphs import ports


@pytest.mark.parametrize("name", ["sd1", "inpainting", "lcm"])
def test_a_unets_samples_have_its_ports_shapes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an inpainting UNet mask and latents lie behind x; the networks before it are stood in for."""
    spec = under_test()[name]

    class Opened:
        pass

    artifact: Any = Opened()
    artifact.spec = spec
    context = np.zeros((1, spec.text.tokens, spec.text.width), np.float32)
    latents = [np.full((1, *spec.latent_shape(24, 24)), value, np.float32) for value in (1, 2, 3)]
    monkeypatch.setattr(samples, "_texts", lambda artifact: [])
    monkeypatch.setattr(samples, "_run", lambda *_: [context, context])
    monkeypatch.setattr(samples, "_encode", lambda artifact: latents)
    shapes = ports.shapes("unet", spec, ports.sides(spec, 24, 24))
    feeds = samples.samples(artifact, "unet")
    assert all({name: value.shape for name, value in feed.items()} == shapes for feed in feeds)
    if spec.inpaints:
        beside = feeds[0]["sample"][0, spec.vae.latent_channels :]
        assert set(np.unique(beside[0])) == {0, 1} and (beside[1:] == 1).all()
