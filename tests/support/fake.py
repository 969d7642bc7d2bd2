"""A stand-in server: the Images service over a real socket, with pictures of one colour and no model.

The first word of the prompt says how it behaves:
    hold      sends Queued, then waits until the call is cancelled (`cancelled` tells)
    meet      waits until two such requests are there at once, so that it ends only when they are concurrent
    refuse    INVALID_ARGUMENT in the server's own words
    full      RESOURCE_EXHAUSTED with RetryInfo of 2.5 s
    away      UNAVAILABLE to the first two attempts, as of a server that loads or drains
    lost      UNAVAILABLE after Queued
    nan       of two pictures the second fails: INTERNAL after the first
Anything else is drawn.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from PIL import Image

from latentd.v1 import images_pb2 as pb
from latentd.v1.images_pb2_grpc import ImagesServicer, add_ImagesServicer_to_server

NAMES = {pb.IMAGE_FORMAT_PNG: "PNG", pb.IMAGE_FORMAT_JPEG: "JPEG", pb.IMAGE_FORMAT_WEBP: "WEBP"}
TIMINGS = pb.Timings(
    queue_ms=3,
    encode_ms=41,
    denoise_ms=1830,
    decode_wait_ms=7,
    decode_ms=60,
    file_ms=5,
    delivery_ms=2,
    seats_shared=1.5,
    steps=4,
    evaluations=4,
)


class FakeImages(ImagesServicer):
    def __init__(self) -> None:
        self.requests: list[pb.GenerateRequest] = []
        self.held = threading.Event()  # a `hold` request is waiting
        self.cancelled = threading.Event()  # and has been cancelled
        self._meeting = threading.Barrier(2)

    def Generate(  # noqa: N802
        self, request: pb.GenerateRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.GenerateEvent]:
        self.requests.append(request)
        word = request.prompt.split(" ")[0]
        gone = threading.Event()

        def leave() -> None:
            gone.set()
            self.cancelled.set()

        if word == "hold" and not context.add_callback(leave):
            leave()  # the call had ended before it was listened to
            return
        if word == "refuse":
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "steps 999 is outside 1..150")
        if word == "away" and len(self.requests) < 3:
            context.abort(grpc.StatusCode.UNAVAILABLE, "this server is draining; ask another one")
        if word == "full":
            context.set_trailing_metadata((("grpc-status-details-bin", retry_status(2, 500_000_000)),))
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "the queue is full")
        images, steps = request.images or 1, request.steps or 4
        width, height = request.width or 32, request.height or 16
        yield pb.GenerateEvent(
            queued=pb.Queued(
                request_id="r1",
                seed=request.seed,
                steps=steps,
                guidance=7.5,
                sampler="dpmpp_2m",
                width=width,
                height=height,
                images=images,
                prompt_cut=word == "long",
            )
        )
        if word == "lost":
            context.abort(grpc.StatusCode.UNAVAILABLE, "the device failed")
        if word == "hold":
            self.held.set()
            gone.wait(30)
            return
        if word == "meet":
            self._meeting.wait(30)
        for index in range(images):
            yield pb.GenerateEvent(started=pb.Started(index=index))
            for step in range(1, steps + 1):
                yield pb.GenerateEvent(step=pb.Step(index=index, step=step, steps=steps))
                if request.preview_every and step % request.preview_every == 0:
                    jpeg = file_of(width, height, (255 * step // steps, 0, 80 * index), "JPEG")
                    yield pb.GenerateEvent(preview=pb.Preview(index=index, step=step, jpeg=jpeg))
            if word == "nan" and index == 1:
                context.set_trailing_metadata((("x-request-id", "r1"),))
                context.abort(grpc.StatusCode.INTERNAL, "picture 1 is not a number")
            if request.keep and index < images - request.keep:
                continue  # the judge prefers the last
            yield pb.GenerateEvent(
                image=pb.Image(
                    data=file_of(width, height, (10, 200, 30), NAMES[request.format]),
                    index=index,
                    format=request.format,
                    seed=request.seed + index,
                    width=width,
                    height=height,
                )
            )
        yield pb.GenerateEvent(done=pb.Done(timings=TIMINGS))

    def ListModels(  # noqa: N802
        self, request: pb.ListModelsRequest, context: grpc.ServicerContext
    ) -> pb.ListModelsResponse:
        model = pb.Model(
            id="demo",
            sizes=[pb.Size(width=64, height=64)],
            samplers=["ddim", "euler"],
            width=64,
            height=64,
            steps=20,
            guidance=4,
            sampler="ddim",
            backend="openvino",
            precision="f32",
            seats=4,
            max_clip_skip=2,
            limits=pb.Limits(prompt_characters=4096, steps=150, guidance=30, images=8),
        )
        return pb.ListModelsResponse(models=[model])


class FakeServer:
    """`images` answers at `address` until `stop`."""

    def __init__(self) -> None:
        self.images = FakeImages()
        self._server = grpc.server(ThreadPoolExecutor(8))
        add_ImagesServicer_to_server(self.images, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def stop(self) -> None:
        self._server.stop(None).wait()


def file_of(width: int, height: int, colour: tuple[int, int, int], format: str) -> bytes:
    file = BytesIO()
    Image.new("RGB", (width, height), colour).save(file, format)
    return file.getvalue()


def retry_status(seconds: int, nanos: int) -> bytes:
    """A serialised google.rpc.Status with a RetryInfo, from Google's own generated classes."""
    packed = Any()
    packed.Pack(RetryInfo(retry_delay=Duration(seconds=seconds, nanos=nanos)))
    return Status(code=8, message="the queue is full", details=[packed]).SerializeToString()
