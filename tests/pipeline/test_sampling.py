"""What scheduler_config.json says of the folder's own sampler: its default draws what diffusers draws from the folder.

The configs are written by diffusers' own classes, and read back by its pipeline, which corrects some of their fields.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import logging
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
from diffusers import StableDiffusionPipeline
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers

from pipeline.checkpoint import sampling
from pipeline.errors import CheckpointError
from pipeline.samplers import SAMPLERS
from pipeline.spec import Spec, read_spec
from tests.support.checkpoints import make_checkpoint
from tests.support.trajectories import Run, difference, ours, run

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own

SCHEDULE = "scheduler/scheduler_config.json"
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
KARRAS = {"use_karras_sigmas": True}
SDE = {"algorithm_type": "sde-dpmsolver++"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("made"))


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """The configs alone, without settings of latentd's."""
    for path in made.rglob("*.json"):
        if path.name != "latentd.json":
            (tmp_path / path.relative_to(made)).parent.mkdir(exist_ok=True)
            (tmp_path / path.relative_to(made)).write_bytes(path.read_bytes())
    return tmp_path


def change(path: Path, **values: object) -> None:
    config = {key: value for key, value in (json.loads(path.read_text()) | values).items() if value is not ...}
    path.write_text(json.dumps(config))


def save(folder: Path, name: str, **fields: Any) -> None:
    """Let diffusers write the scheduler's config, and its class into the index."""
    getattr(diffusers, name)(**BETAS | fields).save_pretrained(folder / "scheduler")
    change(folder / "model_index.json", scheduler=["diffusers", name])


def theirs(folder: Path, steps: int) -> Run:
    """diffusers' own run of the folder, behind its pipeline's corrections."""
    _, name = json.loads((folder / "model_index.json").read_text())["scheduler"]
    parts = dict.fromkeys(("vae", "text_encoder", "tokenizer", "unet", "safety_checker", "feature_extractor"))
    scheduler = getattr(diffusers, name).from_pretrained(folder, subfolder="scheduler")
    pipe: Any = StableDiffusionPipeline(scheduler=scheduler, requires_safety_checker=False, **parts)  # type: ignore[arg-type]
    return run(pipe.scheduler, steps)


def compare(folder: Path, *, steps: tuple[int, ...] = (1, 4, 20)) -> Spec:
    spec = read_spec(folder)
    for count in steps:
        got, wanted = ours(spec.schedule, spec.defaults.sampler, count), theirs(folder, count)
        np.testing.assert_allclose(got.timesteps, wanted.timesteps, rtol=2e-7, atol=1e-5)
        assert difference(got.x, wanted.x) < 1e-5, count
    return spec


@pytest.mark.parametrize(
    ("name", "fields", "sampler"),
    [
        ("DDIMScheduler", {}, "ddim"),
        ("DDIMScheduler", {"timestep_spacing": "trailing", "set_alpha_to_one": False}, "ddim"),
        ("DDIMScheduler", {"clip_sample": False, "rescale_betas_zero_snr": True}, "ddim"),
        ("DDIMParallelScheduler", {"steps_offset": 1}, "ddim"),
        ("DDPMScheduler", {"clip_sample": False}, "ddpm"),
        ("EulerDiscreteScheduler", {"steps_offset": 1}, "euler"),
        ("EulerDiscreteScheduler", {"timestep_spacing": "trailing", "sigma_max": 20.0}, "euler"),  # no levels of it
        ("EulerDiscreteScheduler", KARRAS, "euler_karras"),
        ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "leading"}, "euler_a"),
        ("HeunDiscreteScheduler", {}, "heun"),
        ("HeunDiscreteScheduler", KARRAS, "heun_karras"),
        ("DPMSolverMultistepScheduler", {}, "dpmpp_2m"),
        ("DPMSolverMultistepScheduler", {"euler_at_final": True, "lower_order_final": False}, "dpmpp_2m"),
        ("DPMSolverMultistepScheduler", {"solver_type": "logrho", "timestep_spacing": "leading"}, "dpmpp_2m"),
        ("DPMSolverMultistepScheduler", KARRAS, "dpmpp_2m_karras"),
        ("DPMSolverMultistepScheduler", SDE, "dpmpp_2m_sde"),
        ("DPMSolverMultistepScheduler", SDE | KARRAS, "dpmpp_2m_sde_karras"),
        ("DPMSolverMultistepScheduler", SDE | {"solver_order": 3}, "dpmpp_3m_sde"),
        ("UniPCMultistepScheduler", {"solver_type": "heun"}, "unipc"),
        ("UniPCMultistepScheduler", KARRAS, "unipc_karras"),
        ("LCMScheduler", {}, "lcm"),
    ],
)  # fmt: skip
def test_the_default_draws_what_diffusers_draws(folder: Path, name: str, fields: dict[str, Any], sampler: str) -> None:
    save(folder, name, **fields)
    assert compare(folder).defaults.sampler == sampler


@pytest.mark.parametrize("fields", [{}, {"set_alpha_to_one": True}])
def test_pndm_is_drawn_on_request(folder: Path, fields: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    """In bf16 it multiplies errors, so the folder's own class is not the default; in latentd.json it is."""
    save(folder, "PNDMScheduler", skip_prk_steps=True, **fields)
    with caplog.at_level(logging.WARNING, "latentd.checkpoint"):
        assert read_spec(folder).defaults.sampler == "dpmpp_2m"
    assert "requests that name no sampler get dpmpp_2m, not PNDMScheduler, which is sampler pndm" in caplog.text
    name_pndm(folder)
    assert compare(folder).defaults.sampler == "pndm"


def name_pndm(folder: Path) -> None:
    (folder / "latentd.json").write_text('{"sampler": "pndm"}')


@pytest.mark.parametrize(
    ("name", "absent"),
    [
        ("DDIMScheduler", ("set_alpha_to_one", "steps_offset", "clip_sample", "timestep_spacing")),
        ("PNDMScheduler", ("set_alpha_to_one", "steps_offset", "timestep_spacing")),
        ("EulerDiscreteScheduler", ("timestep_spacing", "final_sigmas_type", "beta_start", "beta_schedule")),
        ("DPMSolverMultistepScheduler", ("solver_order", "algorithm_type", "solver_type", "lambda_min_clipped")),
        ("HeunDiscreteScheduler", ("beta_start", "beta_end", "beta_schedule")),
        ("LCMScheduler", ("beta_start", "beta_end", "beta_schedule", "original_inference_steps")),
    ],
)  # fmt: skip
def test_what_is_absent_is_the_classs_own(folder: Path, name: str, absent: tuple[str, ...]) -> None:
    save(folder, name, **({"skip_prk_steps": True} if name == "PNDMScheduler" else {}))
    change(folder / SCHEDULE, **dict.fromkeys(absent, ...))
    if name == "PNDMScheduler":
        name_pndm(folder)
    compare(folder)


def test_a_null_is_false(folder: Path) -> None:
    for name in ("DDIMScheduler", "PNDMScheduler"):
        save(folder, name, **({"skip_prk_steps": True} if name == "PNDMScheduler" else {}))
        change(folder / SCHEDULE, set_alpha_to_one=None, clip_sample=None)
        if name == "PNDMScheduler":
            name_pndm(folder)
        compare(folder)


@pytest.mark.parametrize("offset", [0, 3])
def test_steps_offset_is_corrected_and_told(folder: Path, offset: int, caplog: pytest.LogCaptureFixture) -> None:
    save(folder, "DDIMScheduler", steps_offset=offset)
    with caplog.at_level(logging.WARNING, "latentd.checkpoint"):
        spec = compare(folder, steps=(5,))
    assert ours(spec.schedule, "ddim", 5).timesteps.tolist() == [801, 601, 401, 201, 1]
    assert f"{folder / SCHEDULE}: steps_offset is {offset}; 1 is taken" in caplog.text


def remarks(folder: Path) -> list[str]:
    told: list[str] = []
    read_spec(folder, told.append)
    return told


def test_clip_sample_is_corrected_and_told(folder: Path) -> None:
    save(folder, "DDIMScheduler", clip_sample=True, steps_offset=1)
    compare(folder)
    assert remarks(folder) == [f"{folder / SCHEDULE}: clip_sample is true; false is taken, as diffusers' pipeline does"]
    change(folder / "model_index.json", _class_name="LatentConsistencyModelPipeline")  # does not correct it
    with pytest.raises(CheckpointError, match="clip_sample is true; latentd does only false"):
        read_spec(folder)


def test_a_class_that_knows_no_zero_snr(folder: Path) -> None:
    """diffusers passes over the key, and draws with the betas as they are."""
    save(folder, "HeunDiscreteScheduler", steps_offset=1)
    change(folder / SCHEDULE, rescale_betas_zero_snr=True)
    compare(folder)
    assert "rescale_betas_zero_snr is true, which HeunDiscreteScheduler does not know" in remarks(folder)[0]


@pytest.mark.parametrize(
    ("name", "fields", "key"),
    [
        ("DPMSolverMultistepScheduler", {"use_lu_lambdas": True}, "use_lu_lambdas"),
        ("DPMSolverMultistepScheduler", {"final_sigmas_type": "sigma_min"}, "final_sigmas_type"),
        ("DPMSolverMultistepScheduler", {"solver_type": "heun"}, "solver_type"),
        ("DPMSolverMultistepScheduler", {"solver_order": 3}, "solver_order"),
        ("DPMSolverMultistepScheduler", {"use_exponential_sigmas": True}, "use_exponential_sigmas"),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}, "algorithm_type"),  # noqa: E501
        ("DPMSolverMultistepScheduler", {"lambda_min_clipped": -5.1}, "lambda_min_clipped"),
        ("DPMSolverMultistepScheduler", SDE | {"solver_order": 3, "lower_order_final": False}, "lower_order_final"),
        ("EulerDiscreteScheduler", KARRAS | {"sigma_min": 0.1, "sigma_max": 10.0}, "sigma_min"),
        ("EulerDiscreteScheduler", {"final_sigmas_type": "sigma_min"}, "final_sigmas_type"),
        ("UniPCMultistepScheduler", {"solver_order": 3}, "solver_order"),
        ("UniPCMultistepScheduler", {"solver_type": "bh1"}, "solver_type"),
        ("UniPCMultistepScheduler", {"predict_x0": False}, "predict_x0"),
        ("UniPCMultistepScheduler", {"disable_corrector": [0]}, "disable_corrector"),
        ("DDPMScheduler", {"variance_type": "fixed_large", "clip_sample": False}, "variance_type"),
        ("PNDMScheduler", {"skip_prk_steps": False}, "skip_prk_steps"),
    ],
)  # fmt: skip
def test_what_would_be_another_picture_is_refused(folder: Path, name: str, fields: dict[str, Any], key: str) -> None:
    """By its key; and served, with a remark, where the model's settings name a sampler."""
    save(folder, name, steps_offset=1, **fields)
    with pytest.raises(CheckpointError) as caught:
        read_spec(folder)
    value = json.loads((folder / SCHEDULE).read_text())[key]
    assert str(caught.value).startswith(
        f"{folder / SCHEDULE}: {key} is {json.dumps(value)}; no sampler of latentd draws {name}"
    )
    assert str(caught.value).endswith('name one in latentd.json, {"sampler": "dpmpp_2m"}')
    (folder / "latentd.json").write_text('{"sampler": "euler"}')
    (told,) = remarks(folder)
    assert told == f"{folder / SCHEDULE}: {key} of {name} is not followed; requests that name no sampler get euler"
    assert read_spec(folder).defaults.sampler == "euler"


def test_ends_of_karras_levels_that_the_class_does_not_list(folder: Path) -> None:
    """diffusers' Heun and DPM-Solver take them all the same, as from another class's config."""
    for name in ("HeunDiscreteScheduler", "DPMSolverMultistepScheduler"):
        save(folder, name, **KARRAS)
        plain = theirs(folder, 5).x
        change(folder / SCHEDULE, sigma_max=8.0)
        assert difference(theirs(folder, 5).x, plain) > 0.01
        with pytest.raises(CheckpointError, match="sigma_max is 8.0; no sampler"):
            read_spec(folder)


@pytest.mark.parametrize(
    ("name", "fields", "sampler"),
    [
        ("LMSDiscreteScheduler", {}, "euler"),
        ("LMSDiscreteScheduler", KARRAS, "euler_karras"),
        ("KDPM2DiscreteScheduler", KARRAS, "heun_karras"),
        ("DEISMultistepScheduler", {}, "dpmpp_2m"),
        ("TCDScheduler", {}, "lcm"),
    ],
)
def test_a_class_without_a_table_gets_the_nearest_and_a_remark(
    folder: Path, name: str, fields: dict[str, Any], sampler: str
) -> None:
    save(folder, "EulerDiscreteScheduler", steps_offset=1, **fields)  # some of the others need scipy
    change(folder / SCHEDULE, _class_name=name)
    change(folder / "model_index.json", scheduler=["diffusers", name])
    path = folder / SCHEDULE
    assert remarks(folder) == [f"{path}: latentd has no table of {name}; requests that name no sampler get {sampler}"]
    assert read_spec(folder).defaults.sampler == sampler
    (folder / "latentd.json").write_text('{"sampler": "ddim"}')
    assert remarks(folder) == []


@pytest.mark.parametrize("name", ["EDMEulerScheduler", "FlowMatchEulerDiscreteScheduler", "IPNDMScheduler", "Mine"])
def test_a_class_on_another_schedule_is_refused(folder: Path, name: str) -> None:
    change(folder / "model_index.json", scheduler=["diffusers", name])
    (folder / "latentd.json").write_text('{"sampler": "ddim"}')
    with pytest.raises(CheckpointError, match=f"names {name}; latentd does DDIMScheduler"):
        read_spec(folder)


def test_two_names_of_one_scheduler(folder: Path) -> None:
    """diffusers' pipeline takes the index's; what the other class would need is not passed over."""
    save(folder, "EulerDiscreteScheduler", steps_offset=1)
    change(folder / "model_index.json", scheduler=["diffusers", "DPMSolverMultistepScheduler"])
    assert compare(folder).defaults.sampler == "dpmpp_2m"
    assert "_class_name is EulerDiscreteScheduler, but model_index.json says DPMSolver" in remarks(folder)[0]
    change(folder / SCHEDULE, final_sigmas_type="sigma_min")
    change(folder / "model_index.json", scheduler=["diffusers", "DDIMScheduler"])
    with pytest.raises(CheckpointError, match="final_sigmas_type"):
        read_spec(folder)


def test_classes_and_their_defaults_are_those_of_diffusers() -> None:
    """From the signatures of the classes: betas, who knows rescale_betas_zero_snr, what an absent field means."""
    known = [*sampling._TABLES, *sampling._NEAREST]
    assert {scheduler.name for scheduler in KarrasDiffusionSchedulers} - {*known} == {"EDMEulerScheduler"}
    for name in known:
        signature = inspect.signature(getattr(diffusers, name).__init__).parameters
        if "beta_start" not in signature:  # a stand-in: the class needs scipy or torchsde
            assert name in ("DPMSolverSDEScheduler", "LMSDiscreteScheduler")
            continue
        betas = tuple(signature[key].default for key in ("beta_start", "beta_end", "beta_schedule"))
        assert sampling._BETAS.get(name, sampling._MOST_BETAS) == betas, name
        assert (name in sampling._UNSCALED) != ("rescale_betas_zero_snr" in signature), name
        for _, fields in sampling._TABLES.get(name, ()):
            for key, field in fields.items():
                assert field.absent == signature[key].default, (name, key)
    assert {table for rows in sampling._TABLES.values() for table, _ in rows} <= SAMPLERS.keys()


def test_samplers_that_a_request_names_keep_the_schedule(folder: Path) -> None:
    """A folder's own sampler is a default and no more: any other has the same betas, spacing and offset."""
    save(folder, "EulerDiscreteScheduler", timestep_spacing="trailing", steps_offset=1)
    spec = read_spec(folder)
    assert spec.schedule.spacing == "trailing" and spec.defaults.sampler == "euler"
    assert dataclasses.replace(spec.schedule, set_alpha_to_one=False).set_alpha_to_one is False
    assert ours(spec.schedule, "ddim", 5).timesteps.tolist() == [999, 799, 599, 399, 199]
