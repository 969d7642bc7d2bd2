"""The folder of LoRAs: names that come and go, and files that somebody made to hurt."""

from __future__ import annotations

import json
import os
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.checkpoint.opened import open_checkpoint
from pipeline.errors import CheckpointError, InvalidRequest
from pipeline.loras.layers import RANKS, inputs_of, unet_layers
from pipeline.loras.shelf import Shelf
from pipeline.spec import Spec
from tests.support.checkpoints import make_checkpoint
from tests.support.loras import Tensors, tensors_of, write

LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
NAME = "lora_unet_" + LAYER.replace(".", "_")


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Spec:
    return open_checkpoint(make_checkpoint(tmp_path_factory.mktemp("models") / "tiny")).spec


@pytest.fixture
def shelf(tmp_path: Path, spec: Spec) -> Shelf:
    (tmp_path / "loras").mkdir()
    return Shelf(tmp_path / "loras", spec, "tiny")


def put(shelf: Shelf, name: str, tensors: Tensors, metadata: dict[str, object] | None = None) -> None:
    write(shelf.folder / f"{name}.safetensors", tensors, metadata)


def refusal(shelf: Shelf, *wanted: tuple[str, float]) -> str:
    """What a client is told, one sentence, whether the header or the numbers are at fault."""
    with pytest.raises((InvalidRequest, CheckpointError)) as caught:
        shelf.lora(shelf.chosen(wanted))
    sentence = str(caught.value)
    assert str(shelf.folder) not in sentence and "\n" not in sentence and len(sentence) <= 1200
    return sentence


def test_a_lora_adds_b_a_times_alpha_over_rank(shelf: Shelf, spec: Spec) -> None:
    tensors = tensors_of(spec, rank=4, alpha=2.0, only="attn1.to_q", text=False)
    put(shelf, "one", tensors)
    lora = shelf.lora(shelf.chosen([("one", 0.5)]))
    a, b = (lora.unet[name][0] for name in inputs_of(LAYER))
    down, up = (tensors[f"{NAME}.lora_{which}.weight"].astype(np.float64) for which in ("down", "up"))
    np.testing.assert_allclose(b.astype(np.float64) @ a, 0.5 * 2 / 4 * (up @ down), atol=1e-6)
    assert lora.rank == RANKS[0] and a.shape == (RANKS[0], 32) and lora.text is None
    assert not lora.unet[inputs_of(LAYER.replace("to_q", "to_k"))[1]].any()


def test_peft_s_patterns_name_alphas(shelf: Shelf, spec: Spec) -> None:
    """Ends of paths; of several that fit PEFT takes the first one."""
    tensors = tensors_of(spec, rank=4, style="peft", only="attn1.to_", text=False)
    patterns = {"to_k": 3.0, "attn1.to_q": 2.0, LAYER: 8.0, "attn1": 5.0, "n1.to_v": 7.0}
    config = {"unet.lora_alpha": 12, "unet.alpha_pattern": patterns}
    put(shelf, "one", tensors, {"lora_adapter_metadata": config})
    lora = shelf.lora(shelf.chosen([("one", 1)]))
    for kind, alpha in (("to_q", 2), ("to_k", 3), ("to_v", 12), ("to_out.0", 12)):
        layer = LAYER.replace("to_q", kind)
        a, b = (lora.unet[name][0].astype(np.float64) for name in inputs_of(layer))
        down, up = (tensors[f"unet.{layer}.lora_{which}.weight"].astype(np.float64) for which in "AB")
        np.testing.assert_allclose(b @ a, alpha / 4 * (up @ down), atol=1e-5)


def test_several_lie_side_by_side(shelf: Shelf, spec: Spec) -> None:
    for name, seed, rank in (("one", 1, 20), ("two", 2, 30)):
        put(shelf, name, tensors_of(spec, rank, seed=seed))
    one, two, both = (
        shelf.lora(shelf.chosen(names)) for names in ([("one", 1)], [("two", -2)], [("one", 1), ("two", -2)])
    )
    assert (one.rank, both.rank) == (32, 64) and both.text is not None and both.key != one.key
    products = [lora.unet[inputs_of(LAYER)[1]][0] @ lora.unet[inputs_of(LAYER)[0]][0] for lora in (one, two, both)]
    np.testing.assert_allclose(products[2], products[0] + products[1], atol=1e-6)


def test_contexts_are_of_a_rank_too(shelf: Shelf, spec: Spec) -> None:
    """Another LoRA may make it larger: the text encoder's last bits may be others then."""
    put(shelf, "text", tensors_of(spec, only="text_model"))
    put(shelf, "unet", tensors_of(spec, 200, text=False))
    alone, both, unet = (
        shelf.chosen([(name, 1) for name in names]) for names in (["text"], ["text", "unet"], ["unet"])
    )
    assert (alone.rank, both.rank, unet.text_key) == (32, 256, None)
    assert alone.text_key != both.text_key == shelf.lora(both).key


@pytest.mark.parametrize("bfloat16", [False, True])
def test_bytes_are_counted_before_they_are_there(shelf: Shelf, spec: Spec, bfloat16: bool) -> None:
    put(shelf, "one", tensors_of(spec, 20, only="attn1.to_q", text=False))
    put(shelf, "two", tensors_of(spec, 30, seed=1))
    shelf = Shelf(shelf.folder, spec, "tiny", bfloat16=bfloat16)
    for names in ([("one", 1)], [("one", 1), ("two", 0.5)]):
        chosen = shelf.chosen(names)
        lora, layers = shelf.lora(chosen), {place for file, _ in chosen.files for place in file.pairs}
        parts = {"unet": lora.unet, "text_encoder": lora.text or {}}
        own = [parts[part][name].nbytes for part, layer in layers for name in inputs_of(layer)]
        assert lora.nbytes == chosen.nbytes == sum(own)


def test_a_backend_may_want_bfloat16_for_its_unet(shelf: Shelf, spec: Spec) -> None:
    put(shelf, "one", tensors_of(spec, seed=1))
    halves = Shelf(shelf.folder, spec, "tiny", bfloat16=True)
    whole, half = (each.lora(each.chosen([("one", 0.7)])) for each in (shelf, halves))
    assert whole.unet.keys() == half.unet.keys() and any(matrix.any() for matrix in half.unet.values())
    for name, matrix in whole.unet.items():
        assert half.unet[name].dtype == np.uint16 and half.unet[name].shape == matrix.shape
        near = (half.unet[name].astype(np.uint32) << 16).view(np.float32)
        np.testing.assert_allclose(near, matrix, rtol=2**-8, atol=0)
    assert whole.text is not None and half.text is not None
    assert all(np.array_equal(half.text[name], matrix) for name, matrix in whole.text.items()), "it computes in float32"


def test_one_that_somebody_sits_with_lives_on(shelf: Shelf, spec: Spec) -> None:
    for seed in range(3):
        put(shelf, f"lora{seed}", tensors_of(spec, seed=seed))
    first, second, third = (shelf.chosen([(f"lora{seed}", 1)]) for seed in range(3))
    small = Shelf(shelf.folder, spec, "tiny", most=2 * first.nbytes)
    assert small.living(first) is None and small.has_room(first)
    seated = small.lora(first)
    small.lora(second)
    (small.folder / "lora0.safetensors").unlink()
    assert small.living(first) is seated and small.lora(first) is seated, "it is not read again"
    assert small.has_room(third), "the second one is remembered alone"
    assert small.living(second) is None and small.living(first) is seated
    other = small.lora(second)
    assert not small.has_room(third) and small.living(third) is None and other is not seated
    del seated
    assert small.has_room(third), "the first one has left"


def test_one_that_is_alone_has_room_whatever_its_size(shelf: Shelf, spec: Spec) -> None:
    put(shelf, "one", tensors_of(spec))
    put(shelf, "bad", spoilt(spec, lambda tensors: tensors[DOWN].__setitem__((0, 0), np.nan)))
    chosen = shelf.chosen([("one", 1)])
    small = Shelf(shelf.folder, spec, "tiny", most=1)
    small._reading = 1
    assert small.has_room(chosen), "though another is being read"
    small._reading = 0
    small.check(chosen)
    seated = small.living(chosen)
    assert seated is not None
    other = small.chosen([("one", 0.5)])
    small.check(other)
    assert small.living(other) is None, "it was looked at, and there is no room to keep it"
    with pytest.raises(CheckpointError, match="NaN or infinite"):
        small.check(small.chosen([("bad", 1)]))


def test_names_come_and_go(shelf: Shelf, spec: Spec) -> None:
    assert shelf.listed() == [] and "there is no LoRA 'new'" in refusal(shelf, ("new", 1))
    put(shelf, "new", tensors_of(spec, seed=1))
    first = shelf.lora(shelf.chosen([("new", 1)]))
    assert [(it.name, it.refusal) for it in shelf.listed()] == [("new", "")] and shelf.listed()[0].size > 1000
    assert shelf.lora(shelf.chosen([("new", 1)])) is first, "it is remembered"
    put(shelf, "new", tensors_of(spec, seed=2))
    second = shelf.lora(shelf.chosen([("new", 1)]))
    name = inputs_of(LAYER)[0]
    assert not np.array_equal(first.unet[name], second.unet[name])
    (shelf.folder / "new.safetensors").unlink()
    assert shelf.listed() == [] and "there is no LoRA" in refusal(shelf, ("new", 1))


def test_a_file_that_is_replaced_after_it_was_chosen(shelf: Shelf, spec: Spec) -> None:
    put(shelf, "one", tensors_of(spec, seed=1))
    chosen = shelf.chosen([("one", 1)])
    put(shelf, "one", tensors_of(spec, seed=2))
    with pytest.raises(CheckpointError, match="LoRA one was replaced or written to while it was used"):
        shelf.lora(chosen)
    file = shelf.folder / "one.safetensors"
    chosen = shelf.chosen([("one", 1)])
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(CheckpointError, match="was replaced or written to"):
        shelf.lora(chosen)
    assert "is not a whole safetensors file" in refusal(shelf, ("one", 1))


@pytest.mark.parametrize(
    "name", ["../secret", "..", ".hidden", "a/b", "/etc/passwd", "a\0b", "", "x" * 200, "a\\b", "a\ud800", "\udcff"]
)
def test_names_never_leave_the_folder(shelf: Shelf, spec: Spec, name: str) -> None:
    write(shelf.folder.parent / "secret.safetensors", tensors_of(spec))
    assert refusal(shelf, (name, 1)).startswith("loras: there is no LoRA")


def test_a_file_whose_name_is_no_text_is_not_listed(shelf: Shelf, spec: Spec) -> None:
    """No message could carry it, and the list would fail for the others' sake."""
    put(shelf, "café", tensors_of(spec))
    put(shelf, os.fsdecode(b"caf\xe9"), tensors_of(spec))
    assert [it.name for it in shelf.listed()] == ["café"]


def test_links(shelf: Shelf, spec: Spec) -> None:
    write(shelf.folder.parent / "secret.safetensors", tensors_of(spec))
    put(shelf, "real", tensors_of(spec))
    (shelf.folder / "out.safetensors").symlink_to(shelf.folder.parent / "secret.safetensors")
    (shelf.folder / "within.safetensors").symlink_to("real.safetensors")
    (shelf.folder / "loop.safetensors").symlink_to("loop.safetensors")
    assert "is a link out of the folder" in refusal(shelf, ("out", 1))
    assert "there is no LoRA" in refusal(shelf, ("loop", 1)) or "link" in refusal(shelf, ("loop", 1))
    assert shelf.lora(shelf.chosen([("within", 1)])).rank == 32


def test_what_is_no_file(shelf: Shelf) -> None:
    os.mkfifo(shelf.folder / "pipe.safetensors")
    (shelf.folder / "folder.safetensors").mkdir()
    for name in ("pipe", "folder"):
        assert "no regular file" in refusal(shelf, (name, 1))
    assert len(shelf.listed()) == 2


def spoilt(spec: Spec, change: Any) -> Tensors:
    tensors = tensors_of(spec, only="attn1.to_q", text=False, alpha=4.0)
    change(tensors)
    return tensors


DOWN, UP = f"{NAME}.lora_down.weight", f"{NAME}.lora_up.weight"
BAD: dict[str, tuple[Any, str]] = {
    "loha": (lambda t: t.update({f"{NAME}.hada_w1_a": t[DOWN]}), "a LoHa"),
    "lokr": (lambda t: t.update({f"{NAME}.lokr_w1": t[DOWN]}), "a LoKr"),
    "dora": (lambda t: t.update({f"{NAME}.dora_scale": t[DOWN]}), "a DoRA"),
    "locon": (lambda t: t.update({"lora_unet_down_blocks_0_resnets_0_conv1.lora_down.weight": t[DOWN]}), "a LoCon"),
    "sdxl": (lambda t: t.update({"lora_te2_text_model_encoder_layers_0_mlp_fc1.alpha": t[DOWN]}), "several text enc"),
    "unknown": (lambda t: t.update({"lora_unet_nothing.lora_down.weight": t[DOWN]}), "for which tiny has no layer"),
    "odd": (lambda t: t.update({"\n\x1b[2Jname": t[DOWN]}), "has a tensor for which"),
    "half": (lambda t: t.pop(UP), "lacks the up (B) matrix"),
    "wide": (lambda t: t.update({DOWN: np.zeros((4, 768), np.float16)}), "is not for tiny"),
    "ranks": (lambda t: t.update({UP: np.zeros((32, 5), np.float16)}), "is not for tiny"),
    "kernel": (lambda t: t.update({DOWN: np.zeros((4, 32, 3, 3), np.float16)}), "is not for tiny"),
    "zero": (lambda t: t.update({DOWN: t[DOWN][:0], UP: t[UP][:, :0]}), "has rank 0"),
    "absurd": (
        lambda t: t.update({DOWN: np.zeros((9999, 32), np.float16), UP: np.zeros((32, 9999), np.float16)}),
        "has rank 9999",
    ),
    "nan": (lambda t: t[DOWN].__setitem__((0, 0), np.nan), "NaN or infinite"),
    "infinite": (lambda t: t[UP].__setitem__((0, 0), np.inf), "NaN or infinite"),
    "alpha": (lambda t: t.update({f"{NAME}.alpha": np.array(np.nan, np.float32)}), "NaN or infinite"),
    "alphas": (lambda t: t.update({f"{NAME}.alpha": np.ones(3, np.float32)}), "no single number"),
    "whole": (lambda t: t.update({UP: t[UP].astype(np.int8)}), "stored as I8"),
    "overflowing": (lambda t: t.update({UP: np.full((32, 4), 3e38, np.float32)}), "overflow"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_told_in_a_sentence(shelf: Shelf, spec: Spec, case: str) -> None:
    change, words = BAD[case]
    put(shelf, "bad", spoilt(spec, change))
    put(shelf, "good", tensors_of(spec))
    assert words in refusal(shelf, ("bad", 8.0))
    assert shelf.lora(shelf.chosen([("good", 1)])).text is not None, "others are unharmed"
    assert len(shelf.listed()) == 2


def test_a_header_of_lies(shelf: Shelf) -> None:
    path = shelf.folder / "bad.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    assert "a header of" in refusal(shelf, ("bad", 1))
    header = json.dumps({DOWN: {"dtype": "F32", "shape": [1 << 30, 1 << 30], "data_offsets": [0, 4]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0\0\0\0")
    assert "is not a whole safetensors file" in refusal(shelf, ("bad", 1))
    path.write_bytes(b"PK\x03\x04 a pickle")
    assert "pickle" in refusal(shelf, ("bad", 1))


def test_ranks_add_up_to_a_limit(shelf: Shelf, spec: Spec) -> None:
    for name in ("one", "two"):
        put(shelf, name, tensors_of(spec, 130, only="attn1.to_q"))
    assert shelf.chosen([("one", 1)]).rank == 256
    assert "rank 260 is above 256 in all" in refusal(shelf, ("one", 1), ("two", 1))
    assert shelf.chosen([("one", 1), ("two", 0)]).rank == 256, "at weight 0 it is left out"


def test_another_familys_file_says_so(shelf: Shelf, spec: Spec) -> None:
    other = replace(spec, unet=replace(spec.unet, context_width=2048))
    put(shelf, "xl", tensors_of(other, text=False))
    assert "it looks like one for SDXL" in refusal(shelf, ("xl", 1))


def test_names_of_the_original_code(shelf: Shelf, spec: Spec) -> None:
    """Kohya's files for SDXL call the UNet's layers so."""
    ours = tensors_of(spec, only="attentions", text=False)
    moved = {"down_blocks_0_attentions_0": "input_blocks_1_1", "up_blocks_1_attentions_0": "output_blocks_2_1"}
    moved |= {"up_blocks_1_attentions_1": "output_blocks_3_1", "mid_block_attentions_0": "middle_block_1"}
    theirs = {}
    for name, tensor in ours.items():
        (start,) = [start for start in moved if f"lora_unet_{start}_" in name]
        theirs[name.replace(start, moved[start])] = tensor
    put(shelf, "ours", ours)
    put(shelf, "theirs", theirs)
    a, b = (shelf.lora(shelf.chosen([(name, 1)])) for name in ("ours", "theirs"))
    for layer in unet_layers(spec.unet):
        for name in inputs_of(layer):
            assert a.unet[name].any() and np.array_equal(a.unet[name], b.unet[name])
