"""Which layers add a LoRA to their weight: those that see many positions for their size."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from benchmarks.gpu.subjects.networks import SD15
from pipeline.loras.layers import merged, unet_layers


def test_sd1_merges_its_two_outer_levels_and_nothing_that_sees_the_prompt() -> None:
    """4,096 and 1,024 positions beside 320 and 640 channels; 256 beside 1,280 are too few."""
    blocks = Counter(layer.partition(".attentions")[0] for layer in merged(SD15))
    assert blocks == {"down_blocks.0": 20, "down_blocks.1": 20, "up_blocks.2": 30, "up_blocks.3": 30}
    assert not any(layer.endswith(("attn2.to_k", "attn2.to_v")) for layer in merged(SD15))
    assert len(unet_layers(SD15)) == 192


@pytest.mark.parametrize(("side", "layers"), [(8, 0), (16, 40), (64, 100), (128, 140), (512, 160)])
def test_larger_pictures_merge_more(side: int, layers: int) -> None:
    """From 512 on all do but the two that see the prompt in each of sixteen blocks."""
    assert len(merged(replace(SD15, sample_size=side))) == layers


def test_a_layer_of_as_many_multiplications_either_way_stays_beside() -> None:
    """8 x 8 positions between 128 channels: 64 * 256 and 128 * 128 are 16,384."""
    demo = replace(SD15, sample_size=16, channels=(64, 128, 128), layers=(1, 1, 1), transformer_layers=(1, 1, 1))
    demo = replace(demo, attention_down=(False, True, True), attention_up=(True, True, False), context_width=192)
    assert merged(demo) == set()
    assert merged(replace(demo, sample_size=18))
