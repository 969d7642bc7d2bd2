"""tritonclient, unmodified, as a program of its own: its descriptors and ours cannot live in one process.

    python tests/peers/triton.py HOST:PORT MODEL [DESCRIPTOR]

It asks in every way that it has, asserts what needs no comparison, and prints as JSON the pictures' SHA-256.
DESCRIPTOR is a file with our proto's, serialized: its names, numbers and types are compared with tritonclient's.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import queue
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from google.protobuf import descriptor_pb2, descriptor_pool
from tritonclient.grpc import model_config_pb2, service_pb2
from tritonclient.utils import InferenceServerException

SECONDS = 120.0
TYPES = {"prompt": "BYTES", "seed": "INT64", "steps": "INT32", "preview_every": "INT32"}


def inputs(**fields: list[Any]) -> list[triton.InferInput]:
    made = []
    for name, values in fields.items():
        kind = {"BYTES": np.object_, "INT64": np.int64, "INT32": np.int32}[TYPES[name]]
        tensor = triton.InferInput(name, [len(values)], TYPES[name])
        tensor.set_data_from_numpy(np.array(values, dtype=kind))
        made.append(tensor)
    return made


ASKED = {"prompt": [b"a red apple", b"a red apple"], "seed": [7, 8], "steps": [3]}


def pictures(result: Any) -> list[str]:
    return [hashlib.sha256(picture).hexdigest() for picture in result.as_numpy("image")]


def unary(client: triton.InferenceServerClient, model: str) -> dict[str, Any]:
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready(model, "1")
    assert client.is_model_ready(f"{model}.stream")
    assert client.get_server_metadata().name == "latentd"
    told = client.get_model_metadata(model)
    assert [(one.name, one.datatype, list(one.shape)) for one in told.outputs] == [
        ("image", "BYTES", [-1]),
        ("seed", "INT64", [-1]),
        ("score", "FP32", [-1]),
    ]
    assert [one.name for one in told.inputs][:4] == ["prompt", "negative_prompt", "seed", "steps"]
    config = client.get_model_config(f"{model}.stream").config
    assert config.model_transaction_policy.decoupled and config.max_batch_size == 0
    assert {one.name for one in client.get_model_repository_index().models} == {model, f"{model}.stream"}

    (before,) = client.get_inference_statistics(model).model_stats
    result = client.infer(model, inputs(**ASKED), request_id="mine", client_timeout=SECONDS)
    assert result.get_response().id == "mine" and result.as_numpy("seed").tolist() == [7, 8]
    answers: queue.Queue[Any] = queue.Queue()
    client.async_infer(model, inputs(**ASKED), callback=lambda result, error: answers.put(error or result))
    later = answers.get(timeout=SECONDS)
    assert not isinstance(later, Exception), later
    (after,) = client.get_inference_statistics(model).model_stats
    assert after.inference_count - before.inference_count == 4 and after.execution_count - before.execution_count == 2
    for part in ("success", "queue", "compute_input", "compute_infer", "compute_output"):
        assert getattr(after.inference_stats, part).count - getattr(before.inference_stats, part).count == 2, part
    try:
        client.infer(model, inputs(**{**ASKED, "steps": [999]}))
        raise AssertionError("999 steps")
    except InferenceServerException as error:
        refusal = [error.status(), error.message()]
    try:
        client.get_system_shared_memory_status()
        raise AssertionError("shared memory")
    except InferenceServerException as error:
        assert error.status() == "StatusCode.UNIMPLEMENTED", error
    return {"infer": pictures(result), "async_infer": pictures(later), "refusal": refusal}


def stream(client: triton.InferenceServerClient, model: str) -> dict[str, Any]:
    answers: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: answers.put(error or result), stream_timeout=SECONDS)
    ask = inputs(**ASKED, preview_every=[1])
    client.async_stream_infer(f"{model}.stream", ask, request_id="1", enable_empty_final_response=True)
    shown: dict[int, str] = {}
    seen: set[str] = set()
    while True:
        answer = answers.get(timeout=SECONDS)
        assert not isinstance(answer, Exception), answer
        told = answer.get_response()
        assert told.id == "1"
        seen |= {output.name for output in told.outputs}
        if answer.as_numpy("image") is not None:
            (shown[int(answer.as_numpy("index")[0])],) = pictures(answer)
        if told.parameters["triton_final_response"].bool_param:
            break
    client.async_stream_infer(f"{model}.stream", inputs(**{**ASKED, "steps": [999]}), request_id="2")
    refusal = answers.get(timeout=SECONDS)
    assert isinstance(refusal, InferenceServerException), refusal
    client.async_stream_infer(model, inputs(**ASKED), request_id="3")  # the stream goes on, and has both names
    both = answers.get(timeout=SECONDS)
    client.stop_stream()
    assert answers.empty()
    return {
        "stream": [shown[0], shown[1]],
        "unary_on_a_stream": pictures(both),
        "outputs": sorted(seen),
        "stream_refusal": refusal.message(),
    }


async def with_asyncio(address: str, model: str) -> dict[str, Any]:
    async with triton_aio.InferenceServerClient(address) as client:
        assert await client.is_server_ready()
        answers = await asyncio.gather(*(client.infer(model, inputs(**ASKED)) for _ in range(2)))

        async def requests():
            yield {"model_name": f"{model}.stream", "inputs": inputs(**ASKED), "request_id": "1"}

        images = [
            result.as_numpy("image")
            async for result, error in client.stream_infer(requests())
            if not error and result.as_numpy("image") is not None
        ]
        assert len(images) == 2
    assert pictures(answers[0]) == pictures(answers[1])
    return {"asyncio": pictures(answers[0])}


def compare(descriptor: str) -> int:
    """How many fields our proto has. Each is one of tritonclient's, with its number and type."""
    data = Path(descriptor).read_bytes()
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(data)
    theirs = {**service_pb2.DESCRIPTOR.message_types_by_name, **model_config_pb2.DESCRIPTOR.message_types_by_name}
    ours = pool.FindFileByName(descriptor_pb2.FileDescriptorProto.FromString(data).name)
    for name, kind in ours.enum_types_by_name.items():
        known = model_config_pb2.DESCRIPTOR.enum_types_by_name[name]
        assert {value.name: value.number for value in kind.values} == {v.name: v.number for v in known.values}, name
    pairs = [(kind, theirs[name]) for name, kind in ours.message_types_by_name.items()]
    count = 0
    for kind, known in pairs:
        for field in kind.fields:
            other = known.fields_by_name[field.name]
            for part in ("number", "type", "is_repeated"):
                assert getattr(field, part) == getattr(other, part), field.full_name
            count += 1
        pairs += [(nested, known.nested_types_by_name[nested.name]) for nested in kind.nested_types]
    (service,), (known,) = ours.services_by_name.values(), service_pb2.DESCRIPTOR.services_by_name.values()
    for method in service.methods:
        other = known.methods_by_name[method.name]
        for part in ("client_streaming", "server_streaming"):
            assert getattr(method, part) == getattr(other, part), method.name
        assert method.input_type.full_name == other.input_type.full_name, method.name
        assert method.output_type.full_name == other.output_type.full_name, method.name
    return count


def main(address: str, model: str, descriptor: str = "") -> None:
    if descriptor:
        assert compare(descriptor) > 80
    with triton.InferenceServerClient(address) as client:
        told = {**unary(client, model), **stream(client, model)}
    print(json.dumps({**told, **asyncio.run(with_asyncio(address, model))}))


if __name__ == "__main__":
    main(*sys.argv[1:])
