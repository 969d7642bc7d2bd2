"""What is sent back of a request: all its pictures in one answer, or an answer with each step, preview and picture."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Sequence

from pipeline.errors import InvalidRequest, LatentdError
from server.doors.oip.call import Call
from server.doors.oip.infer_request import InferRequest, Run
from server.doors.oip.inference import inference_pb2 as pb
from server.doors.oip.models import IMAGE, INDEX, PREVIEW, SCORE, SEEDS, STEP, STEPS, VERSION
from server.doors.oip.tensors import Tensor, add_output
from server.errors import UNEXPECTED, Busy, Loading
from server.events import Event, Image, Preview, Step
from server.job import Job

log = logging.getLogger("latentd.door")

_FINAL = "triton_final_response"  # Triton's word, which its clients wait for: this was the request's last response


async def together(request: InferRequest, call: Call, jobs: Sequence[Job]) -> pb.ModelInferResponse:
    """Wait for all pictures. Errors: those that a job failed with."""
    pictures = {run.first + e.index: e async for run, e in _events(request.runs, call, jobs) if isinstance(e, Image)}
    images = [pictures[place] for place in sorted(pictures)]
    scores = [image.score for image in images if image.score is not None]
    columns = {IMAGE: [image.data for image in images], SEEDS: [image.seed for image in images], SCORE: scores}
    answer = _answer(request)
    for tensor, values in columns.items():
        if values and tensor.name in request.wanted:
            add_output(answer, tensor, values)
    return answer


async def one_by_one(request: InferRequest, call: Call, jobs: Sequence[Job]) -> AsyncGenerator[pb.ModelInferResponse]:
    """Yield an answer with each event whose output is wanted; the last one says so. Errors: those of a failed job."""
    left = request.images
    async with contextlib.aclosing(_events(request.runs, call, jobs)) as events:
        async for run, event in events:
            match event:
                case Step(index, step, steps):
                    about: dict[Tensor, int | float | bytes] = {STEP: step, STEPS: steps}
                case Preview(index, step, jpeg):
                    about = {PREVIEW: jpeg, STEP: step}
                case Image(index, data, seed, score):
                    about = {IMAGE: data, SEEDS: seed} | ({} if score is None else {SCORE: score})
                    left -= 1
                case _:
                    continue
            if next(iter(about)).name in request.wanted:  # what the answer is for; the others are only about it
                answer = final(_answer(request), not left)
                for tensor, value in {**about, INDEX: run.first + index}.items():
                    if tensor.name in request.wanted:
                        add_output(answer, tensor, [value])
                yield answer
    if IMAGE.name not in request.wanted:
        yield final(_answer(request), True)


def failure(error: Exception, message: pb.ModelInferRequest, request_id: str) -> pb.ModelStreamInferResponse:
    """Tell of an error on a stream, which goes on. Its code, and when to ask again, are parameters."""
    if not isinstance(error, LatentdError):
        log.error("unexpected error", exc_info=error, extra={"request": request_id})
        error = LatentdError(UNEXPECTED)
    answer = pb.ModelInferResponse(model_name=message.model_name, model_version=VERSION, id=message.id)
    answer.parameters["code"].string_param = error.code
    answer.parameters["request_id"].string_param = request_id
    if isinstance(error, Busy | Loading):
        answer.parameters["retry_after"].double_param = error.retry_after
    if isinstance(error, InvalidRequest) and error.field:
        answer.parameters["field"].string_param = error.field
    return pb.ModelStreamInferResponse(error_message=str(error), infer_response=final(answer, True))


def final(answer: pb.ModelInferResponse, last: bool) -> pb.ModelInferResponse:
    """Say in an answer on a stream whether it is its request's last."""
    answer.parameters[_FINAL].bool_param = last
    return answer


def _answer(request: InferRequest) -> pb.ModelInferResponse:
    return pb.ModelInferResponse(model_name=request.named.name, model_version=VERSION, id=request.id)


async def _events(runs: Sequence[Run], call: Call, jobs: Sequence[Job]) -> AsyncGenerator[tuple[Run, Event]]:
    """Yield the events of all jobs as they come. Errors: the first of theirs, once all are over.

    A job that waits for its events to be taken loses old steps and previews, as its mailbox has it.
    """
    coming: asyncio.Queue[tuple[Run, Event] | Exception | None] = asyncio.Queue(1)

    async def forward(run: Run, job: Job) -> None:
        end = None
        try:
            async with contextlib.aclosing(call.events(job)) as events:
                async for event in events:
                    await coming.put((run, event))
        except Exception as error:
            end = error
        await coming.put(end)

    forwarding = [asyncio.create_task(forward(run, job)) for run, job in zip(runs, jobs, strict=True)]
    try:
        left, errors = len(forwarding), []
        while left:
            item = await coming.get()
            if isinstance(item, tuple):
                yield item
                continue
            left -= 1
            if item is not None:
                errors.append(item)
        if errors:
            raise errors[0]
    finally:
        for task in forwarding:
            task.cancel()
        await asyncio.gather(*forwarding, return_exceptions=True)
