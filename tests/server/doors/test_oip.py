"""The Open Inference Protocol by stubs of our own proto: what its clients ask and are told, beside the doors' table."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from engines.model import Model
from server.app import Server
from server.doors.oip.inference import inference_pb2 as pb
from tests.support import oip, wire
from tests.support.doors import DOORS
from tests.support.held import Held, eventually
from tests.support.patience import PATIENCE
from tests.support.serving import address, serving
from tests.support.unread import Unread

INFER = "/inference.GRPCInferenceService/ModelInfer"
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"


def infer(server: Server, message: pb.ModelInferRequest) -> dict[str, list[Any]]:
    return oip.outputs(oip.call(server, "ModelInfer", message))


def refusal(server: Server, message: pb.ModelInferRequest) -> tuple[str, str]:
    return wire.refusal(address(server), INFER, message.SerializeToString())


def stream(server: Server, *messages: pb.ModelInferRequest) -> list[pb.ModelStreamInferResponse]:
    """All responses to `messages`, on one stream."""
    answers = wire.send(address(server), STREAM, *(message.SerializeToString() for message in messages))
    return [pb.ModelStreamInferResponse.FromString(answer) for answer in answers]


def apple(model: str, images: int = 1, **fields: Any) -> pb.ModelInferRequest:
    return oip.request(model, images, **{"prompt": "a red apple", "seed": 7, "steps": 2, **fields})


def last(answer: pb.ModelStreamInferResponse) -> bool:
    return answer.infer_response.parameters["triton_final_response"].bool_param


def test_each_picture_has_its_prompt_its_negative_prompt_and_its_seed(server: Server, model: Model) -> None:
    texts = [("a red apple", "blue", 7), ("a red apple", "blue", 8), ("the cat", "blue", 9), ("the cat", "red", 2)]
    message = pb.ModelInferRequest(model_name=model.id)
    for name, column in zip(("prompt", "negative_prompt", "seed"), zip(*texts, strict=True), strict=True):
        oip.tensor(message, name, column)
    oip.tensor(message, "steps", [2])
    told = infer(server, message)
    assert told["seed"] == [7, 8, 9, 2]
    for picture, (prompt, negative, seed) in zip(told["image"], texts, strict=True):
        fields = {"prompt": prompt, "negative_prompt": negative, "seed": seed, "steps": 2}
        assert [picture] == DOORS[0].ask(server, **fields).pictures


def test_a_seed_that_was_drawn_is_told(server: Server, model: Model) -> None:
    told = infer(server, oip.request(model.id, 3, prompt="a red apple", steps=2))
    first = told["seed"][0]
    assert told["seed"] == [(first + index) % 2**32 for index in range(3)]
    assert infer(server, apple(model.id, 3, seed=first)) == told


def test_typed_contents_are_read_as_raw_ones(server: Server, model: Model) -> None:
    message = pb.ModelInferRequest(model_name=model.id)
    for name, kind, field, value in (
        ("prompt", "BYTES", "bytes_contents", b"a red apple"),
        ("seed", "INT64", "int64_contents", 7),
        ("steps", "INT32", "int_contents", 2),
        ("guidance", "FP32", "fp32_contents", 2.5),
    ):
        contents = pb.InferTensorContents(**{field: [value]})
        message.inputs.add(name=name, datatype=kind, shape=[1], contents=contents)
    assert infer(server, message) == infer(server, apple(model.id, guidance=2.5))


def test_typed_contents_of_another_length_than_the_shape(server: Server, model: Model) -> None:
    message = pb.ModelInferRequest(model_name=model.id)
    contents = pb.InferTensorContents(bytes_contents=[b"a", b"b"])
    message.inputs.add(name="prompt", datatype="BYTES", shape=[1], contents=contents)
    assert refusal(server, message) == ("INVALID_ARGUMENT", "prompt has 2 elements; its shape is [1]")


def test_only_the_outputs_that_are_wanted(server: Server, model: Model) -> None:
    message = apple(model.id)
    message.outputs.add(name="seed")
    assert infer(server, message) == {"seed": [7]}
    message.model_name = f"{model.id}.stream"
    for names, expected in ((["image"], {"image"}), (["seed"], set()), (["step", "index"], {"step", "index"})):
        del message.outputs[:]
        for name in names:
            message.outputs.add(name=name)
        answers = stream(server, message)
        told = [oip.outputs(answer.infer_response) for answer in answers]
        assert {name for one in told for name in one} == expected
        assert [last(answer) for answer in answers] == [False] * (len(answers) - 1) + [True]
        assert names == ["image"] or not told[-1], "nothing that is wanted comes last, so that is empty"


def test_parameters_say_what_has_no_tensor(server: Server, model: Model) -> None:
    fields: dict[str, Any] = {"format": "jpeg", "quality": 60, "clip_skip": 0, "long_prompt": True}
    fields |= {"prompt_weights": True, "guidance_start": 0.5, "guidance_end": 1.0}
    told = infer(server, apple(model.id, prompt="(a red:1.4) apple", **fields))
    asked = {"prompt": "(a red:1.4) apple", "seed": 7, "steps": 2, **fields}
    assert told["image"] == DOORS[0].ask(server, **asked).pictures
    assert told["image"][0].startswith(b"\xff\xd8")


def nth(message: pb.ModelInferRequest, name: str) -> int:
    return [sent.name for sent in message.inputs].index(name)


def with_raw(name: str, data: bytes) -> Any:
    def change(message: pb.ModelInferRequest) -> None:
        message.raw_input_contents[nth(message, name)] = data

    return change


def with_input(which: str, **fields: Any) -> Any:
    def change(message: pb.ModelInferRequest) -> None:
        sent = message.inputs[nth(message, which)]
        for field, value in fields.items():
            if field == "shape":
                sent.shape[:] = value
            else:
                setattr(sent, field, value)

    return change


def set_parameter(name: str, **value: Any) -> Any:
    return lambda message: message.parameters[name].CopyFrom(pb.InferParameter(**value))


KNOWN = "prompt, negative_prompt, seed, steps, guidance, sampler, width, height, init_image, mask, style_image"
PARAMETERS = (
    "format, quality, clip_skip, long_prompt, prompt_weights, guidance_start, guidance_end, strength, fit, "
    "style_weight, keep, loras, original_size, crop, target_size, timeout"
)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda m: m.inputs.add(name="size"),
            "raw_input_contents has 3 tensors; it must have one of each of the 4 inputs",
        ),
        (with_input("steps", name="step"), f"'step' is no input of tiny; there are: {KNOWN}"),
        (with_input("steps", name="seed", datatype="INT64"), "seed comes twice among the inputs"),
        (with_input("steps", datatype="INT64"), "steps has the datatype 'INT64'; it takes INT32"),
        (with_input("steps", shape=[1, 1]), "steps has the shape [1, 1]; it takes [1]"),
        (with_input("steps", shape=[2]), "steps has the shape [2]; it takes [1]"),
        (with_input("prompt", shape=[-1]), "prompt has the shape [-1]; it takes [n]"),
        (with_input("prompt", shape=[]), "prompt has the shape []; it takes [n]"),
        (with_input("prompt", shape=[2]), "prompt ends before or inside its element 1"),
        (with_input("prompt", shape=[2**40]), "the length of prompt is 1099511627776; it must be 1 to 8"),
        (with_input("prompt", shape=[1] * 99), "prompt has the shape [1, 1, 1, 1, 1, 1, 1, 1]; it takes [n]"),
        (with_raw("steps", b"123"), "steps has 3 bytes; 1 of INT32 have 4"),
        (with_raw("steps", b""), "steps has 0 bytes; 1 of INT32 have 4"),
        (with_raw("prompt", b"\5\0\0\0abc"), "prompt ends before or inside its element 0"),
        (with_raw("prompt", b"\1\0"), "prompt ends before or inside its element 0"),
        (with_raw("prompt", b"\xff\xff\xff\xffa"), "prompt ends before or inside its element 0"),
        (with_raw("prompt", b"\1\0\0\0a\1\0"), "prompt has 2 bytes after its last element, 0"),
        (with_raw("prompt", b"\2\0\0\0\xff\xfe"), "prompt is not UTF-8; text is"),
        (with_raw("seed", struct.pack("<q", -1)), "seed is -1; it must be 0 to 4294967295"),
        (with_raw("seed", struct.pack("<q", 2**32)), "seed is 4294967296; it must be 0 to 4294967295"),
        (
            lambda m: m.inputs[0].contents.bytes_contents.append(b"a"),
            "prompt has contents beside raw_input_contents; it must be in one of the two",
        ),
        (
            lambda m: m.inputs[0].parameters["shared_memory_region"].CopyFrom(pb.InferParameter(string_param="a")),
            "prompt is in shared memory, which this server has none of; send it in the message",
        ),
        (lambda m: m.outputs.add(name="latents"), "'latents' is no output of tiny; there are: image, seed, score"),
        (
            lambda m: m.outputs.add(name="image").parameters["classification"].CopyFrom(pb.InferParameter()),
            "image has the parameter 'classification'; no output here has classes",
        ),
        (
            lambda m: m.outputs.add(name="image").parameters["shared_memory_region"].CopyFrom(pb.InferParameter()),
            "image is in shared memory, which this server has none of; send it in the message",
        ),
        (
            set_parameter("priority", uint64_param=1),
            f"'priority' is no parameter of this server; there are: {PARAMETERS}",
        ),
        (set_parameter("clip_skip", string_param="1"), "clip_skip is '1'; it takes a whole number"),
        (set_parameter("clip_skip", bool_param=True), "clip_skip is 'True'; it takes a whole number"),
        (set_parameter("long_prompt", int64_param=1), "long_prompt is '1'; it takes true or false"),
        (set_parameter("guidance_end", bool_param=True), "guidance_end is 'True'; it takes a number"),
        (set_parameter("guidance_end", double_param=2.0), "guidance_end is 2; it must be 0 to 1"),
        (set_parameter("format"), "format is 'None'; it takes text"),
        (set_parameter("format", string_param="bmp"), "format is 'bmp'; it must be one of png, jpeg, webp"),
        (set_parameter("timeout", int64_param=0), f"timeout is 0; it takes microseconds, 1 to {10**15}"),
        (set_parameter("timeout", string_param="1"), f"timeout is 1; it takes microseconds, 1 to {10**15}"),
    ],
)
def test_what_is_not_as_the_metadata_say(change: Any, told: str, server: Server, model: Model) -> None:
    message = apple("tiny")
    change(message)
    assert model.id == "tiny" and refusal(server, message) == ("INVALID_ARGUMENT", told)
    (answer,) = stream(server, message)
    assert answer.error_message == told, "in the same words on a stream"


def test_what_is_missing_or_of_another_length(server: Server, model: Model) -> None:
    message = pb.ModelInferRequest(model_name=model.id)
    assert refusal(server, message) == ("INVALID_ARGUMENT", "prompt is missing among the inputs")
    message = apple(model.id)
    oip.tensor(message, "negative_prompt", ["a", "b"])
    assert refusal(server, message) == ("INVALID_ARGUMENT", "negative_prompt has 2 elements; prompt has 1")


def test_an_error_among_several_prompts_says_which(server: Server, model: Model) -> None:
    message = pb.ModelInferRequest(model_name=model.id)
    oip.tensor(message, "prompt", ["a", "a", "x" * 4097, "b"])
    told = ("INVALID_ARGUMENT", "element 2: prompt has 4097 characters; at most 4096 are taken")
    assert refusal(server, message) == told
    message = pb.ModelInferRequest(model_name=model.id)
    oip.tensor(message, "prompt", ["a", "b", "b"])
    oip.tensor(message, "steps", [999])
    assert refusal(server, message)[1] == "element 0: steps is 999; it must be 1 to 150"


def test_pictures_of_several_prompts_cannot_be_chosen_among(server: Server, model: Model) -> None:
    message = pb.ModelInferRequest(model_name=model.id)
    oip.tensor(message, "prompt", ["a", "b"])
    message.parameters["keep"].int64_param = 1
    told = "keep is 1; it chooses among pictures of one prompt whose seeds follow one another"
    assert refusal(server, message) == ("INVALID_ARGUMENT", told)


def test_what_may_not_fit_one_message_is_sent_to_the_stream(server: Server, model: Model) -> None:
    code, told = refusal(server, apple(model.id, 2, width=1024, height=1024))
    assert code == "INVALID_ARGUMENT" and told.startswith("prompt's length x width x height x 3 is 6291456 bytes, ")
    assert told.endswith(f"use ModelStreamInfer with {model.id}.stream")


def test_a_name_that_answers_more_than_once_is_sent_to_the_stream(server: Server, model: Model) -> None:
    told = f"{model.id}.stream answers more than once: use ModelStreamInfer, or {model.id}"
    assert refusal(server, apple(f"{model.id}.stream")) == ("INVALID_ARGUMENT", told)


def test_metadata_and_configuration_agree(server: Server, model: Model) -> None:
    types = {"BYTES": pb.TYPE_STRING, "INT64": pb.TYPE_INT64, "INT32": pb.TYPE_INT32, "FP32": pb.TYPE_FP32}
    for name, stream in ((model.id, False), (f"{model.id}.stream", True)):
        told = oip.call(server, "ModelMetadata", pb.ModelMetadataRequest(name=name, version="1"))
        config = oip.call(server, "ModelConfig", pb.ModelConfigRequest(name=name)).config
        assert (told.name, list(told.versions), told.platform) == (name, ["1"], "latentd")
        assert (config.name, config.platform, config.backend) == (name, "latentd", model.backend.name)
        assert config.model_transaction_policy.decoupled is stream
        for tensors, configured in ((told.inputs, config.input), (told.outputs, config.output)):
            assert [(one.name, types[one.datatype], one.shape) for one in tensors] == [
                (one.name, one.data_type, one.dims) for one in configured
            ]
        assert [one.name for one in config.input if not one.optional] == ["prompt"]
        assert {one.name for one in told.inputs} == {*oip.DATATYPES} - (set() if stream else {"preview_every"})
        assert config.parameters["sizes"].string_value == "24x24,32x24,24x28"
        assert config.parameters["max_steps"].string_value == "150"


def test_health_server_metadata_and_the_index(server: Server, model: Model) -> None:
    assert oip.call(server, "ServerLive", pb.ServerLiveRequest()).live
    assert oip.call(server, "ServerReady", pb.ServerReadyRequest()).ready
    assert oip.call(server, "ModelReady", pb.ModelReadyRequest(name=model.id, version="1")).ready
    told = oip.call(server, "ServerMetadata", pb.ServerMetadataRequest())
    assert told.name == "latentd" and "statistics" in told.extensions
    index = oip.call(server, "RepositoryIndex", pb.RepositoryIndexRequest())
    assert [(one.name, one.version, one.state) for one in index.models] == [
        (model.id, "1", "READY"),
        (f"{model.id}.stream", "1", "READY"),
    ]


@pytest.mark.parametrize("method", ["ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics"])
def test_a_model_or_a_version_that_is_not_there(method: str, server: Server, model: Model) -> None:
    kind = getattr(pb, f"{method}Request")
    for fields, told in (
        ({"name": "sdxl"}, f"model is 'sdxl'; this server has {model.id} and {model.id}.stream"),
        ({"name": model.id, "version": "2"}, f"version is '2'; {model.id} has 1"),
    ):
        message = kind(**fields).SerializeToString()
        assert wire.refusal(address(server), f"/{oip.SERVICE.full_name}/{method}", message) == ("NOT_FOUND", told)


def test_a_server_that_is_not_ready_is_alive_and_says_so(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(model) as server:
        server._door.not_serving()
        server.service.draining = True
        assert oip.call(server, "ServerLive", pb.ServerLiveRequest()).live
        assert not oip.call(server, "ServerReady", pb.ServerReadyRequest()).ready
        assert not oip.call(server, "ModelReady", pb.ModelReadyRequest(name=model.id)).ready
        assert [one.state for one in oip.call(server, "RepositoryIndex", pb.RepositoryIndexRequest()).models] == [
            "UNAVAILABLE",
            "UNAVAILABLE",
        ]
        assert not oip.call(server, "RepositoryIndex", pb.RepositoryIndexRequest(ready=True)).models
        assert oip.call(server, "ModelMetadata", pb.ModelMetadataRequest(name=model.id)).name == model.id
        assert refusal(server, apple(model.id))[0] == "UNAVAILABLE"


def test_statistics_count_each_request_in_all_its_parts_or_as_failed(model: Model) -> None:
    parts = ("success", "queue", "compute_input", "compute_infer", "compute_output")
    with serving(model) as server:
        infer(server, apple(model.id, 2))
        infer(server, apple(model.id))
        refusal(server, apple(model.id, steps=0))
        stream(server, apple(f"{model.id}.stream", 3))
        both = oip.call(server, "ModelStatistics", pb.ModelStatisticsRequest()).model_stats
        assert [(one.name, one.version, one.inference_count, one.execution_count) for one in both] == [
            (model.id, "1", 3, 2),
            (f"{model.id}.stream", "1", 3, 1),
        ]
        for one, count, failed in zip(both, (2, 1), (1, 0), strict=True):
            times = one.inference_stats
            assert [getattr(times, part).count for part in parts] == [count] * len(parts)
            assert times.fail.count == failed and one.last_inference > 0
            assert 0 < sum(getattr(times, part).ns for part in parts[1:]) <= times.success.ns
        (one,) = oip.call(server, "ModelStatistics", pb.ModelStatisticsRequest(name=model.id)).model_stats
        assert one == both[0]


@pytest.mark.parametrize(
    "method",
    ["SystemSharedMemoryRegister", "CudaSharedMemoryStatus", "RepositoryModelLoad", "TraceSetting", "LogSettings"],
)
def test_what_triton_has_besides_is_unimplemented(
    method: str, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    assert wire.refusal(address(server), f"/{oip.SERVICE.full_name}/{method}", b"")[0] == "UNIMPLEMENTED"
    assert "Traceback" not in caplog.text


def test_the_clients_id_comes_back_and_is_the_logs(server: Server, model: Model, caplog: Any) -> None:
    caplog.set_level("INFO", "latentd.request")
    with grpc.insecure_channel(address(server)) as channel:
        method = oip.method(channel, "ModelInfer")
        answer, call = method.with_call(apple(model.id, id="mine-7"), timeout=PATIENCE)
        assert answer.id == "mine-7" and ("x-request-id", "mine-7") in call.trailing_metadata()
        answer, call = method.with_call(apple(model.id, id="a b"), timeout=PATIENCE)
        ours = dict(call.trailing_metadata())["x-request-id"]
        assert answer.id == "a b" and ours != "a b", "it comes back as it is, and is no word for a log"
        metadata = (("x-request-id", "header"),)
        _, call = method.with_call(apple(model.id, id="mine-8"), timeout=PATIENCE, metadata=metadata)
        assert dict(call.trailing_metadata())["x-request-id"] == "header"
    stream(server, apple(f"{model.id}.stream", id="mine-9"))
    ids = [record.request for record in caplog.records]  # pyright: ignore[reportAttributeAccessIssue]
    assert ids == ["mine-7", ours, "header", "mine-9"]


# On a stream.


def test_a_stream_answers_with_steps_previews_and_pictures(server: Server, model: Model) -> None:
    DOORS[0].ask(server, prompt="a", steps=8, preview_every=1)  # fits the map
    answers = stream(server, apple(f"{model.id}.stream", 2, id="mine", steps=5, preview_every=1))
    told = [oip.outputs(answer.infer_response) for answer in answers]
    pictures = {one["index"][0]: (one["image"][0], one["seed"][0]) for one in told if "image" in one}
    expected = infer(server, apple(model.id, 2, steps=5))
    assert [pictures[0], pictures[1]] == [*zip(expected["image"], expected["seed"], strict=True)]
    steps = [one for one in told if "steps" in one]
    assert steps and all(one["steps"] == [5] and one["step"][0] <= 5 for one in steps)
    previews = [one for one in told if "preview" in one]
    assert previews and all(one["preview"][0].startswith(b"\xff\xd8") and 0 < one["step"][0] < 5 for one in previews)
    assert [last(answer) for answer in answers] == [False] * (len(answers) - 1) + [True]
    assert "image" in told[-1] and not any(answer.error_message for answer in answers)
    assert {answer.infer_response.id for answer in answers} == {"mine"}


def test_requests_of_one_stream_run_side_by_side_under_both_names(wired: Model, held: Held) -> None:
    with serving(wired, seats=2) as server, grpc.insecure_channel(address(server)) as channel:
        held.hold()
        messages = [apple(wired.id, id="first"), apple(f"{wired.id}.stream", id="second", seed=9)]
        call = oip.method(channel, "ModelStreamInfer")(iter(messages), timeout=PATIENCE)
        device = server.service.device
        assert device
        eventually(lambda: len(device._jobs), 2)
        held.release()
        answers = list(call)
        images: dict[str, list[bytes]] = {}
        for answer in answers:
            images.setdefault(answer.infer_response.id, []).extend(oip.outputs(answer.infer_response).get("image", []))
        assert sum(last(answer) for answer in answers) == 2
        assert images["first"] == infer(server, messages[0])["image"]
        assert images["second"] == infer(server, apple(wired.id, seed=9))["image"]


def test_an_error_ends_its_own_request_and_the_stream_goes_on(server: Server, model: Model) -> None:
    bad, good = apple(f"{model.id}.stream", id="bad", steps=999), apple(f"{model.id}.stream", id="good")
    answers = stream(server, bad, good)
    (error,) = [answer for answer in answers if answer.error_message]
    told = {name: oip.parameter(value) for name, value in error.infer_response.parameters.items()}
    assert error.error_message == "steps is 999; it must be 1 to 150" and error.infer_response.id == "bad"
    assert told == {"code": "INVALID_ARGUMENT", "field": "steps", "request_id": "bad", "triton_final_response": True}
    assert sum("image" in oip.outputs(answer.infer_response) for answer in answers) == 1


def test_a_client_that_wants_grpcs_errors_has_them(server: Server, model: Model) -> None:
    message = apple(f"{model.id}.stream", steps=999).SerializeToString()
    with pytest.raises(grpc.RpcError) as raised:
        wire.send(address(server), STREAM, message, metadata=(("triton_grpc_error", "true"),))
    call: Any = raised.value
    assert (call.code().name, call.details()) == ("INVALID_ARGUMENT", "steps is 999; it must be 1 to 150")


def test_bytes_that_are_no_message_end_the_stream(server: Server) -> None:
    told = wire.refusal(address(server), STREAM, b"\xff" * 9)
    assert told == ("INVALID_ARGUMENT", "the request's 9 bytes do not parse as inference.ModelInferRequest")


def test_a_stream_without_requests_ends(server: Server) -> None:
    assert stream(server) == []


def test_a_stream_has_one_place_and_each_further_request_at_a_time_takes_one(wired: Model, held: Held) -> None:
    with serving(wired, seats=4, max_calls_caller=2) as server, grpc.insecure_channel(address(server)) as channel:
        held.hold()
        messages = [apple(wired.id, id=str(number)) for number in range(4)]
        call = oip.method(channel, "ModelStreamInfer")(iter(messages), timeout=PATIENCE)
        refused = [next(call), next(call)]
        assert {answer.infer_response.id for answer in refused} == {"2", "3"}
        for answer in refused:
            assert answer.error_message == "2 calls of 127.0.0.1 are open; at most 2 of a caller may be"
            assert answer.infer_response.parameters["retry_after"].double_param == 1.0
        held.release()
        assert {answer.infer_response.id for answer in call} == {"0", "1"}
        eventually(lambda: server.metrics.registry.get_sample_value("latentd_calls_open", {"model": wired.id}), 0)


def test_a_client_that_leaves_a_stream_leaves_all_its_requests(wired: Model, held: Held) -> None:
    with serving(wired, seats=1) as server, grpc.insecure_channel(address(server)) as channel:
        held.hold()
        messages = [apple(f"{wired.id}.stream", steps=100, id=str(number)) for number in range(3)]
        call = oip.method(channel, "ModelStreamInfer")(iter(messages), timeout=PATIENCE)
        device = server.service.device
        assert device
        eventually(lambda: len(device._jobs), 3)
        call.cancel()
        labels = {"model": wired.id, "door": "oip", "code": "CANCELLED"}
        eventually(lambda: server.metrics.registry.get_sample_value("latentd_requests_total", labels), 3)
        held.release()
        eventually(lambda: len(device._jobs), 0)


def test_a_stream_that_nobody_reads_is_given_up_with_its_requests(model: Model) -> None:
    with serving(model, unread_seconds=0.01) as server, Unread(address(server)) as unread:
        unread.begun(STREAM, apple(f"{model.id}.stream").SerializeToString())
        labels = {"model": model.id, "door": "oip", "code": "ABORTED"}
        eventually(lambda: server.metrics.registry.get_sample_value("latentd_requests_total", labels), 1)
        eventually(lambda: server._door._oip.idle.is_set(), True)
        device = server.service.device
        assert device
        eventually(lambda: len(device._jobs), 0)


def test_a_picture_that_failed_ends_a_stream_request_after_the_others(wired: Model, held: Held) -> None:
    def spoil(denoiser: Any, rows: Any) -> None:
        denoiser.outputs[0] = float("nan")  # of the first seat's row

    with serving(wired, seats=2) as server:
        held.after_run = spoil
        answers = stream(server, apple(f"{wired.id}.stream", 2, guidance=1.0))
        assert [answer.error_message for answer in answers if answer.error_message] == [
            "image 0 came out as not a number"
        ]
        assert answers[-1].error_message and last(answers[-1]) and not any(map(last, answers[:-1]))
        assert [
            oip.outputs(a.infer_response)["index"] for a in answers if "image" in oip.outputs(a.infer_response)
        ] == [[1]]


@pytest.fixture(autouse=True)
def _nothing_waits(request: pytest.FixtureRequest) -> Iterator[None]:
    """No test leaves a request behind on the server that all share."""
    yield
    if "server" in request.fixturenames:
        server = request.getfixturevalue("server")
        eventually(lambda: server._door._oip.idle.is_set(), True)
