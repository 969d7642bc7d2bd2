"""KServe's own client, unmodified, as a program of its own.

python tests/peers/kserve_client.py HOST:PORT MODEL
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from typing import Any

import numpy as np
from grpc.aio import AioRpcError
from kserve import InferenceGRPCClient, InferInput, InferRequest


def request(model: str, raw: bool, **scalars: int) -> InferRequest:
    told: list[Any] = [("prompt", "BYTES", np.array([b"a red apple", b"a red apple"], dtype=np.object_))]
    told.append(("seed", "INT64", np.array([7, 8], dtype=np.int64)))
    told += [(name, "INT32", np.array([value], dtype=np.int32)) for name, value in scalars.items()]
    inputs = []
    for name, datatype, values in told:
        tensor = InferInput(name, list(values.shape), datatype)
        tensor.set_data_from_numpy(values, binary_data=raw)
        inputs.append(tensor)
    return InferRequest(model_name=model, infer_inputs=inputs, request_id="mine")


async def main(address: str, model: str) -> None:
    client = InferenceGRPCClient(address)
    assert await client.is_server_live() and await client.is_server_ready() and await client.is_model_ready(model)
    shown = {}
    for name, raw in (("raw", True), ("contents", False)):
        answer = await client.infer(request(model, raw, steps=3))
        assert answer.id == "mine"
        images = answer.get_output_by_name("image").as_numpy() if raw else answer.outputs[0].as_numpy()
        shown[name] = [hashlib.sha256(picture).hexdigest() for picture in images]
    try:
        await client.infer(request(model, True, steps=999))
        raise AssertionError("999 steps")
    except AioRpcError as error:
        shown["refusal"] = [str(error.code()), error.details()]
    await client.close()
    print(json.dumps(shown))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
