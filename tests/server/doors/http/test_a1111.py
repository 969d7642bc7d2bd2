"""What AUTOMATIC1111's API says of samplers, of what there is not, and of who has what under way."""

from __future__ import annotations

import base64
import dataclasses
import http.client
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from engines.model import Model
from pipeline.errors import InvalidRequest
from pipeline.samplers import SAMPLERS
from server.app import Server
from server.doors.http.a1111.infotext import infotext
from server.doors.http.a1111.samplers import label_of, listed, sampler_of
from server.doors.http.a1111.txt2img import Txt2Img, image_request
from server.doors.http.a1111.underway import Underway
from server.events import Image, Step
from server.request import ImageRequest
from tests.support.held import Held, eventually
from tests.support.jobs import idle_job, wish
from tests.support.patience import PATIENCE
from tests.support.serving import nothing_left, serving
from tests.support.uploads import colours, saved

# What A1111's own schema sends when nothing was set (GET /openapi.json of 1.10, StableDiffusionProcessingTxt2Img).
UNTOUCHED: dict[str, Any] = {
    **{"prompt": "", "negative_prompt": "", "styles": None, "seed": -1, "subseed": -1, "subseed_strength": 0},
    **{"seed_resize_from_h": -1, "seed_resize_from_w": -1, "sampler_name": None, "scheduler": None, "batch_size": 1},
    **{"n_iter": 1, "steps": 5, "cfg_scale": 7.0, "width": 24, "height": 24, "restore_faces": None, "tiling": None},
    **{"do_not_save_samples": False, "do_not_save_grid": False, "eta": None, "denoising_strength": None},
    **{"s_min_uncond": None, "s_churn": None, "s_tmax": None, "s_tmin": None, "s_noise": None},
    **{"override_settings": None, "override_settings_restore_afterwards": True, "refiner_checkpoint": None},
    **{"refiner_switch_at": None, "disable_extra_networks": False, "firstpass_image": None, "comments": None},
    **{"enable_hr": False, "firstphase_width": 0, "firstphase_height": 0, "hr_scale": 2.0, "hr_upscaler": None},
    **{"hr_second_pass_steps": 0, "hr_resize_x": 0, "hr_resize_y": 0, "hr_checkpoint_name": None},
    **{"hr_sampler_name": None, "hr_scheduler": None, "hr_prompt": "", "hr_negative_prompt": "", "force_task_id": None},
    **{"sampler_index": "Euler", "script_name": None, "script_args": [], "send_images": True, "save_images": False},
    **{"alwayson_scripts": {}, "infotext": None},
}


def read(model: Model, **fields: Any) -> Any:
    return image_request(Txt2Img.model_validate_json(json.dumps(fields)), model, 8)


def test_what_nobody_set_is_no_obstacle(model: Model) -> None:
    request = read(model, **UNTOUCHED)
    assert (request.seed, request.sampler, request.guidance, request.images) == (None, "euler", 7.0, 1)
    nothing = read(model)
    assert dataclasses.replace(nothing, images=None, long_prompt=None, prompt_weights=None, preview_every=None) == (
        type(nothing)()
    ), "the model's own defaults"


def test_numbers_may_be_text_as_in_a1111(model: Model) -> None:
    request = read(model, steps="7", cfg_scale="4.5", width=24.0, seed="-1")
    assert (request.steps, request.guidance, request.width, request.seed) == (7, 4.5, 24, None)


def test_unknown_fields_are_refused_unless_they_say_nothing(model: Model) -> None:
    read(model, later_field=None, other=False, third=[], fourth=0, fifth="")
    with pytest.raises(InvalidRequest, match="^later_field is a text; ") as refused:
        read(model, later_field="x")
    assert refused.value.field == "later_field"


def test_our_own_part_is_a_script(model: Model) -> None:
    args = {"style_image": "YQ==", "style_weight": 0.5, "keep": 2, "guidance_start": 0.1, "guidance_end": 0.9}
    request = read(model, alwayson_scripts={"LatentD": {"args": [args]}, "ControlNet": {"args": []}})
    assert request.style_image == b"a"
    assert {name: getattr(request, name) for name in args} == {**args, "style_image": b"a"}
    assert read(model, alwayson_scripts={"latentd": {"args": []}}) == read(model)
    for scripts, words in (
        ({"ControlNet": {"args": [1]}}, "alwayson_scripts is of ControlNet; this server has latentd alone"),
        ([1], "alwayson_scripts is no object; it takes latentd"),
        ({"latentd": {"args": [1]}}, "alwayson_scripts.latentd.args takes a list of one object"),
        ({"latentd": {"args": [{}, {}]}}, "alwayson_scripts.latentd.args takes a list of one object"),
        ({"latentd": {"args": [{}]}, "Latentd": {"args": [{"keep": 9}]}}, "alwayson_scripts has latentd 2 times, "),
        ({"latentd": 1}, "alwayson_scripts.latentd.args takes a list of one object"),
        ({"latentd": {"args": [{"kep": 1}]}}, "there is no field 'kep'; did you mean keep?; there are: style_image, "),
        ({"latentd": {"args": [{"style_image": "#"}]}}, "style_image is not a picture in base64"),
    ):
        with pytest.raises(InvalidRequest) as refused:
            read(model, alwayson_scripts=scripts)
        assert str(refused.value).startswith(words)


def test_override_settings(model: Model) -> None:
    title = f"{model.id} [{model.digest[:10]}]"
    settings = {
        "sd_model_checkpoint": title,
        "CLIP_stop_at_last_layers": 2,
        "samples_format": "jpg",
        "jpeg_quality": 70,
    }
    request = read(model, override_settings=settings)
    assert (request.clip_skip, request.format, request.quality) == (1, "jpeg", 70)
    assert read(model, override_settings={"jpeg_quality": 70}).quality is None, "of no png"
    for settings, field in (
        ({"sd_model_checkpoint": "other"}, "sd_model_checkpoint"),
        ({"CLIP_stop_at_last_layers": 0}, "CLIP_stop_at_last_layers"),
        ({"CLIP_stop_at_last_layers": 99}, "CLIP_stop_at_last_layers"),
        ({"samples_format": "avif"}, "samples_format"),
        ({"samples_format": ["png"]}, "samples_format"),
        ({"sd_vae": "x"}, "sd_vae"),
    ):
        with pytest.raises(InvalidRequest) as refused:
            read(model, override_settings=settings)
        assert refused.value.field == field


def test_every_sampler_has_a_label_and_comes_back() -> None:
    for name in SAMPLERS:
        label, schedule = label_of(name)
        assert sampler_of(label, schedule, "ddim") == name
        assert sampler_of(label.upper(), schedule.lower(), "ddim") == name
        assert sampler_of(name, None, "ddim") == name, "our names are known too"
    assert {entry["name"] for entry in listed()} == {label_of(name)[0] for name in SAMPLERS}


@pytest.mark.parametrize(
    ("name", "schedule", "ours"),
    [
        (None, None, None),
        (None, "Karras", "dpmpp_2m_karras"),
        ("DPM++ 2M", None, "dpmpp_2m_karras"),  # A1111's Automatic
        ("DPM++ 2M", "Automatic", "dpmpp_2m_karras"),
        ("DPM++ 2M Karras", "Uniform", "dpmpp_2m_karras"),  # the name's end counts
        ("DPM++ 3M SDE", None, "dpmpp_3m_sde_karras"),
        ("Euler", None, "euler"),
        ("k_euler_a", "automatic", "euler_a"),
        ("PLMS", None, "pndm"),
    ],
)
def test_samplers_and_schedules(name: str | None, schedule: str | None, ours: str | None) -> None:
    assert sampler_of(name, schedule, "dpmpp_2m") == ours


@pytest.mark.parametrize(
    ("name", "schedule", "field"),
    [("LMS", None, "sampler_name"), ("Euler", "Exponential", "scheduler"), ("Euler a", "Karras", "scheduler")],
)
def test_samplers_that_there_are_not(name: str, schedule: str | None, field: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        sampler_of(name, schedule, "ddim")
    assert refused.value.field == field


def test_infotext_is_what_a1111_writes(model: Model) -> None:
    said = ImageRequest(prompt="a cat,\nred", negative_prompt="dog", clip_skip=1)
    asked = dataclasses.replace(wish(), sampler="dpmpp_2m_karras", steps=20, guidance=7.5, size=(512, 768))
    text = infotext(asked, model, said, 42)
    assert text == (
        "a cat,\nred\nNegative prompt: dog\nSteps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, "
        f"Seed: 42, Size: 512x768, Model hash: {model.digest[:10]}, Model: {model.id}, Clip skip: 2, "
        f"Version: {infotext(asked, model, ImageRequest(), 0).rpartition('Version: ')[2]}"
    )


class Caller:
    """Somebody at an address of this machine."""

    def __init__(self, server: Server, host: str) -> None:
        self._server, self._host = server, host

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self._server.http_port, PATIENCE, (self._host, 0))
        text = None if body is None else json.dumps(body)
        connection.request(method, f"/sdapi/v1/{path}", text, {"Content-Type": "application/json"})
        answer = json.loads(connection.getresponse().read())
        connection.close()
        return answer

    def start(self, path: str = "txt2img", **body: Any) -> list[Any]:
        """Draw in a thread; the answer is in the list once it is there."""
        answers: list[Any] = []
        threading.Thread(target=lambda: answers.append(self.ask("POST", path, body))).start()
        return answers


@pytest.fixture
def held_server(wired: Model, held: Held) -> Iterator[Server]:
    with serving(wired, http_port=0, seats=2) as server:
        held.hold()
        yield server
        held.release()


def test_progress_and_interrupt_reach_ones_own_requests(held_server: Server, held: Held) -> None:
    one, other = Caller(held_server, "127.0.0.1"), Caller(held_server, "127.0.0.2")
    mine = one.start(prompt="a red apple", steps=4, n_iter=2)
    held.begun()
    eventually(lambda: one.ask("GET", "progress")["state"]["job_count"], 1)
    held.let()
    held.begun()
    eventually(lambda: one.ask("GET", "progress")["progress"] > 0, True)
    state = one.ask("GET", "progress?skip_current_image=true")["state"]
    assert state["sampling_steps"] == 4 and state["sampling_step"] == 1 and not state["interrupted"]
    nobody = other.ask("GET", "progress")
    assert nobody["progress"] == 0 and nobody["state"]["job_count"] == 0
    assert other.ask("POST", "interrupt") == {}
    assert not mine and one.ask("GET", "progress")["state"]["job_count"] == 1
    runs = len(held.runs)
    assert one.ask("POST", "interrupt") == {}
    held.release()
    eventually(lambda: len(mine), 1)
    assert mine[0]["images"] == [] and json.loads(mine[0]["info"])["all_seeds"] == []
    nothing_left(held_server)
    assert len(held.runs) == runs, "no further step"
    assert one.ask("GET", "progress")["state"]["job_count"] == 0


def test_interrupt_reaches_one_whose_picture_is_being_read(
    wired: Model, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, go, heard, accept = threading.Event(), threading.Event(), threading.Event(), Underway.accepted
    monkeypatch.setattr(Underway, "accepted", lambda underway, job: (accept(underway, job), heard.set()))

    def wait() -> None:
        reading.set()
        assert go.wait(PATIENCE)

    held.before_moments = wait
    picture = base64.b64encode(saved(colours())).decode()
    with serving(wired, http_port=0) as server:
        caller = Caller(server, "127.0.0.1")
        answers = caller.start("img2img", prompt="a", steps=120, init_images=[picture])
        assert reading.wait(PATIENCE)
        assert caller.ask("GET", "progress")["state"]["job_count"] == 1
        caller.ask("POST", "interrupt")
        assert caller.ask("GET", "progress")["state"]["interrupted"]
        held.hold()
        runs = len(held.runs)
        go.set()
        assert heard.wait(PATIENCE)
        held.release()
        eventually(lambda: len(answers), 1)
        assert answers[0]["images"] == [] and json.loads(answers[0]["info"])["denoising_strength"] == 0.75
        nothing_left(server)
        assert len(held.runs) <= runs + 1, "of 90: one may have begun before its job was heard of"


def test_interrupted_after_the_first_of_two(wired: Model, held: Held) -> None:
    """What is there is delivered."""
    with serving(wired, http_port=0, seats=1) as server:
        held.hold()
        caller = Caller(server, "127.0.0.1")
        answers = caller.start(prompt="a", steps=1, seed=5, n_iter=2)
        held.begun()
        held.let()
        held.begun()  # the second's step
        eventually(lambda: caller.ask("GET", "progress")["progress"], 0.5)
        device = server.service.device
        assert device
        eventually(
            lambda: server.metrics.registry.get_sample_value(
                "latentd_images_total", {"model": server.service.model_id}
            ),
            1.0,
        )
        caller.ask("POST", "interrupt")
        held.release()
        eventually(lambda: len(answers), 1)
        assert len(answers[0]["images"]) == 1 and json.loads(answers[0]["info"])["all_seeds"] == [5]


def test_progress_counts_the_steps_that_are_made() -> None:
    """Of four half are made where half of a picture may change."""
    underway = Underway("id")
    underway.accepted(idle_job(dataclasses.replace(wish(evaluations=2), steps=4)))
    for step in (1, 2):
        underway.note(Step(0, step, 2))
        told = underway.progress(1, with_image=False)
        assert told["progress"] == step / 2 and told["state"]["sampling_steps"] == 2
    underway.note(Image(0, b"file", 7))
    assert underway.progress(1, with_image=False)["progress"] == 1


def test_previews_that_could_not_be_made_are_tried_again(wired: Model, held: Held) -> None:
    tries: list[None] = []

    def fail_once() -> None:
        tries.append(None)
        if len(tries) == 1:
            raise RuntimeError("for once")

    held.before_moments = fail_once
    with serving(wired, http_port=0) as server:
        caller, device = Caller(server, "127.0.0.1"), server.service.ready()
        eventually(lambda: (caller.ask("GET", "progress"), device.preview.known is not None)[1], True)
        server.service.draining = True
        device.preview._map = None
        begun = len(tries)
        assert caller.ask("GET", "progress")["progress"] == 0 and len(tries) == begun, "of a server that drains"
