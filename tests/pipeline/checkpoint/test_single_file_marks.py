"""What a single file says of itself in several places: followed where they agree, refused where they contradict."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from export.layout import lay_out
from model.weights import check_weights
from pipeline.checkpoint.opened import open_checkpoint
from pipeline.checkpoint.single_file.kinds import SD1, SD2
from pipeline.checkpoint.single_file.marks import Trained, trained
from pipeline.errors import CheckpointError
from pipeline.schedule import alphas_cumprod
from pipeline.spec import Spec, read_spec
from tests.support.original import Weights, folder_weights, make_folder, write_original
from tests.support.trajectories import difference, ours, run

UNET, CLIP, OPENCLIP = "model.diffusion_model.", "cond_stage_model.transformer.", "cond_stage_model.model."
EMPTY = torch.zeros(0)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    here = tmp_path_factory.mktemp("files")
    made = {}
    for kind in ("sd1", "sd2"):
        folder = make_folder(here / kind, kind, levels=2, layers=1)
        made[kind] = write_original(folder, kind, here / f"{kind}.safetensors", levels=2, layers=1)
    return made


def written(file: Path, tmp_path: Path, more: Weights, metadata: dict[str, str] | None = None) -> Path:
    save_file({**load_file(file), **more}, tmp_path / "m.safetensors", metadata=metadata)
    return tmp_path / "m.safetensors"


def read(file: Path, tmp_path: Path) -> tuple[Spec, list[str]]:
    """Open the file; its spec and what the log says. What it means in diffusers' layout lies in `out` then."""
    said: list[str] = []
    handler, log = logging.Handler(), logging.getLogger("latentd.checkpoint")
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    log.addHandler(handler)
    before = log.level
    log.setLevel(logging.INFO)
    try:
        checkpoint = open_checkpoint(file)
    finally:
        log.setLevel(before)
        log.removeHandler(handler)
    lay_out(checkpoint, tmp_path / "out")
    return checkpoint.spec, said


def refusal(file: Path, tmp_path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read(file, tmp_path)
    assert not (tmp_path / "out").exists(), "nothing is written"
    return str(caught.value)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own
@pytest.mark.usefixtures("rounded_roots")
def test_zero_terminal_snr_is_followed(files: dict[str, Path], tmp_path: Path) -> None:
    """The pair of empty tensors that ComfyUI writes: no signal is left at the last timestep, and a run starts there."""
    file = written(files["sd1"], tmp_path, {"v_pred": EMPTY, "ztsnr": EMPTY})
    spec, said = read(file, tmp_path)
    assert said[0] == "m.safetensors: Stable Diffusion 1.x, prediction v_prediction, zero terminal SNR"
    assert not any("ztsnr" in line or "v_pred (" in line for line in said), "they are not left out"
    assert alphas_cumprod(spec.schedule)[-1] == 0
    scheduler = diffusers.DPMSolverMultistepScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )
    got, wanted = ours(spec.schedule, spec.defaults.sampler, 7), run(scheduler, 7)
    assert got.timesteps.tolist() == wanted.timesteps.tolist() and got.timesteps[0] == 999
    assert difference(got.x, wanted.x) < 1e-5
    assert (
        diffusers.DPMSolverMultistepScheduler.load_config(tmp_path / "out", subfolder="scheduler").items()
        >= {
            "rescale_betas_zero_snr": True,
            "timestep_spacing": "trailing",
            "_class_name": "DPMSolverMultistepScheduler",
        }.items()
    )


def test_a_file_that_was_distilled_has_lcms_defaults(files: dict[str, Path], tmp_path: Path) -> None:
    spec, _ = read(
        written(files["sd1"], tmp_path, {f"{UNET}time_embed.cond_proj.weight": torch.zeros(32, 64)}), tmp_path
    )
    assert spec.unet.guidance_width == 64
    assert (spec.defaults.sampler, spec.defaults.steps, spec.defaults.guidance) == ("lcm", 4, 8.5)


@pytest.mark.parametrize(
    ("more", "settings", "zero_snr"),
    [
        ({}, {}, False),
        ({}, {"rescale_betas_zero_snr": True, "prediction": "v_prediction"}, True),
        ({"ztsnr": EMPTY, "v_pred": EMPTY}, {"rescale_betas_zero_snr": False}, False),
    ],
)
def test_settings_beside_the_file_have_the_last_word(
    files: dict[str, Path], tmp_path: Path, more: Weights, settings: dict[str, object], zero_snr: bool
) -> None:
    file = written(files["sd1"], tmp_path, more)
    (tmp_path / "m.latentd.json").write_text(json.dumps(settings | {"steps": 9}))
    spec, _ = read(file, tmp_path)
    assert spec.schedule.rescale_betas_zero_snr == zero_snr and spec.defaults.steps == 9


@pytest.mark.parametrize(
    ("kind", "tensors", "metadata", "wanted"),
    [
        (SD1, [], {}, "epsilon"),
        (SD2, ["v_pred"], {}, "v_prediction"),
        (SD2, [], {"modelspec.predict_key": "epsilon"}, "epsilon"),  # as ComfyUI writes it
        (SD2, ["v_pred"], {"modelspec.predict_key": "v"}, "v_prediction"),
        (SD2, [], {"modelspec.prediction_type": "v", "modelspec.predict_key": "v"}, "v_prediction"),
        (SD2, [], {"modelspec.architecture": "stable-diffusion-v2-768-v"}, "v_prediction"),
        (SD2, [], {"modelspec.architecture": "stable-diffusion-v2-512"}, "epsilon"),
        (SD1, [], {"modelspec.architecture": "stable-diffusion-v1", "format": "pt"}, "epsilon"),
    ],
)
def test_where_a_file_tells_its_prediction(
    kind: object, tensors: list[str], metadata: dict[str, str], wanted: str
) -> None:
    assert trained(Path("a"), kind, tensors, metadata, settings="s") == Trained(wanted, False)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("tensors", "metadata", "words"),
    [
        (["v_pred"], {"modelspec.prediction_type": "epsilon"}, "its tensor v_pred says v_prediction, modelspec.pred"),
        ([], {"modelspec.prediction_type": "v", "modelspec.predict_key": "epsilon"}, "contradicts itself"),
        ([], {"modelspec.prediction_type": "v", "modelspec.architecture": "stable-diffusion-v2-512"}, "contradicts"),
        ([], {"modelspec.prediction_type": "flow"}, "modelspec.prediction_type is 'flow' in its metadata"),
    ],
)
def test_contradictions_are_asked_about(tensors: list[str], metadata: dict[str, str], words: str) -> None:
    with pytest.raises(CheckpointError, match="give --prediction epsilon or") as caught:
        trained(Path("a"), SD2, tensors, metadata, settings="m.latentd.json")
    assert words in str(caught.value) and "in m.latentd.json beside it" in str(caught.value)
    given = trained(Path("a"), SD2, tensors, metadata, prediction="epsilon", settings="m.latentd.json")
    assert given == Trained("epsilon", False)


def test_a_text_encoder_under_two_names(files: dict[str, Path], tmp_path: Path) -> None:
    """With and without `text_model.`, as merging tools leave it: it cannot be told which of the two was trained."""
    root = f"{CLIP}text_model."
    twice = {CLIP + k.removeprefix(root): t + 1 for k, t in load_file(files["sd1"]).items() if k.startswith(root)}
    message = refusal(written(files["sd1"], tmp_path, twice), tmp_path)
    assert "cond_stage_model.transformer is there twice, below text_model.* and without: embeddings." in message


@pytest.mark.parametrize("kind", ["sd1", "sd2"])
def test_of_two_text_encoders_the_one_that_fits_the_unet(files: dict[str, Path], tmp_path: Path, kind: str) -> None:
    """A merge of two families holds both; their widths tell."""
    prefixes = {"sd1": CLIP, "sd2": OPENCLIP}
    other = "sd2" if kind == "sd1" else "sd1"
    stray = {k: t for k, t in load_file(files[other]).items() if k.startswith(prefixes[other])}
    file = written(files[kind], tmp_path, stray, {"modelspec.prediction_type": "epsilon"})
    spec, said = read(file, tmp_path)
    alone = tmp_path / "alone.safetensors"
    save_file(load_file(files[kind]), alone, metadata={"modelspec.prediction_type": "epsilon"})
    assert said[0].startswith(f"m.safetensors: Stable Diffusion {kind[2]}.x") and "cond_stage_model (" in said[1]
    assert spec == open_checkpoint(alone).spec


def test_two_that_fit_are_refused(files: dict[str, Path], tmp_path: Path) -> None:
    again = {k.replace(CLIP, "conditioner.embedders.0.transformer."): t for k, t in load_file(files["sd1"]).items()}
    again = {k: t.clone() for k, t in again.items() if k.startswith("conditioner.")}
    assert "has 2 text encoders that fit its UNet" in refusal(written(files["sd1"], tmp_path, again), tmp_path)


def test_a_text_encoder_that_does_not_fit(files: dict[str, Path], tmp_path: Path) -> None:
    """SD 2's in an SD 1 file: the widths differ; and where a narrow model's happen to agree, the projections do."""
    whole, others = load_file(files["sd1"]), load_file(files["sd2"])
    mixed = {k: t for k, t in whole.items() if not k.startswith(CLIP)}
    mixed |= {k: t for k, t in others.items() if k.startswith(OPENCLIP)}
    save_file(mixed, tmp_path / "m.safetensors")
    message = refusal(tmp_path / "m.safetensors", tmp_path)
    assert "its UNet takes a context 64 wide, but of its text encoders cond_stage_model.model.* is 128 wide" in message
    mixed = {k: t for k, t in others.items() if not k.startswith(OPENCLIP)}
    mixed |= {k: torch.zeros(49408, 128) if "token_embedding" in k else t for k, t in whole.items() if CLIP in k}
    save_file(mixed, tmp_path / "m.safetensors")
    message = refusal(tmp_path / "m.safetensors", tmp_path)
    assert "that of Stable Diffusion 1.x, its UNet's projections are linear, which that family's are not" in message


@pytest.mark.parametrize("attends", [True, False])
def test_a_unet_without_a_middle_block(tmp_path: Path, attends: bool) -> None:
    """As BK-SDM-Tiny's, written under the original names; diffusers builds the same network from the config."""
    more: dict[str, object] = {"mid_block_type": None}
    if attends:
        more |= {"down_block_types": ["CrossAttnDownBlock2D"] * 2, "up_block_types": ["CrossAttnUpBlock2D"] * 2}
    folder = make_folder(tmp_path / "folder", "sd1", levels=2, layers=1, more=more)
    file = write_original(folder, "sd1", tmp_path / "m.safetensors", levels=2, layers=1)
    assert not any("middle_block" in name for name in load_file(file))
    spec, _ = read(file, tmp_path)
    assert spec == read_spec(folder) and not spec.unet.middle
    check_weights(spec, open_checkpoint(tmp_path / "out").weights)
    theirs = UNet2DConditionModel.from_pretrained(tmp_path / "out", subfolder="unet")
    assert theirs.mid_block is None
    got = {name: tuple(t.shape) for name, t in folder_weights(tmp_path / "out", "unet").items()}
    assert got == {name: tuple(t.shape) for name, t in theirs.state_dict().items()}
    wanted = folder_weights(folder, "unet")
    assert all(torch.equal(t, wanted[name]) for name, t in folder_weights(tmp_path / "out", "unet").items())
