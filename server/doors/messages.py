"""The messages of latentd.v1, read into a request and written from what the server knows."""

from __future__ import annotations

from collections.abc import Sequence

from latentd.v1 import images_pb2 as pb
from pipeline.loras.shelf import Listed
from pipeline.samplers import SAMPLERS
from server.device.judging import Ranks
from server.device.loop import Device
from server.events import Done, Event, Image, Preview, Started, Step, Timings
from server.job import Job
from server.limits import Limits
from server.request import ImageRequest
from server.service import Accepted
from server.wish import default_size

FORMATS = {
    pb.IMAGE_FORMAT_UNSPECIFIED: None,
    pb.IMAGE_FORMAT_PNG: "png",
    pb.IMAGE_FORMAT_JPEG: "jpeg",
    pb.IMAGE_FORMAT_WEBP: "webp",
}
_NUMBERS = {word: number for number, word in FORMATS.items() if word}
_OPTIONAL = ("width", "height", "steps", "guidance", "sampler", "seed", "images", "quality")
_OPTIONAL += ("strength", "guidance_start", "guidance_end", "style_weight", "keep", "progress")


def image_request(message: pb.GenerateRequest) -> ImageRequest:
    """Read a message; a format that is none is handed on as its number's digits, which are no format's word."""
    return ImageRequest(
        model=message.model or None,
        prompt=message.prompt,
        negative_prompt=message.negative_prompt,
        format=FORMATS.get(message.format, str(message.format)),
        preview_every=message.preview_every,
        priority=message.priority,
        long_prompt=message.long_prompt,
        prompt_weights=message.prompt_weights,
        clip_skip=message.clip_skip,
        init_image=message.init_image or None,
        mask=message.mask or None,
        fit=message.fit or None,
        style_image=message.style_image or None,
        loras=[(lora.name, lora.weight if lora.HasField("weight") else 1.0) for lora in message.loras] or None,
        original_size=message.original_size or None,
        crop=message.crop or None,
        target_size=message.target_size or None,
        **{name: getattr(message, name) for name in _OPTIONAL if message.HasField(name)},
    )


def event_message(event: Event, job: Job) -> pb.GenerateEvent | bytes:
    """Return an event's message; one with a picture is written already."""
    match event:
        case Started(index):
            return pb.GenerateEvent(started=pb.Started(index=index))
        case Step(index, step, steps):
            return pb.GenerateEvent(step=pb.Step(index=index, step=step, steps=steps))
        case Preview(index, step, jpeg):
            return pb.GenerateEvent(preview=pb.Preview(index=index, step=step, jpeg=jpeg))
        case Image():
            return _image(pb.GenerateEvent.IMAGE_FIELD_NUMBER, event, job)
        case Done(timings):
            return pb.GenerateEvent(done=pb.Done(timings=timings_message(timings, job)))
        case _:
            raise AssertionError(event)


def queued_message(accepted: Accepted) -> pb.Queued:
    job, wish = accepted.job, accepted.job.wish
    return pb.Queued(
        request_id=job.id,
        model=job.model,
        seed=wish.seed,
        steps=wish.steps,
        guidance=wish.guidance,
        sampler=wish.sampler,
        width=wish.size[0],
        height=wish.size[1],
        images=wish.images,
        ahead=accepted.ahead,
        prompt_cut=wish.prompt.cut,
        negative_prompt_cut=wish.negative is not None and wish.negative.cut,
    )


def response_message(accepted: Accepted, images: Sequence[Image], done: Done) -> bytes:
    """Return a GenerateResponse, written already."""
    rest = pb.GenerateResponse(queued=queued_message(accepted), timings=timings_message(done.timings, accepted.job))
    written = (_image(pb.GenerateResponse.IMAGES_FIELD_NUMBER, image, accepted.job) for image in images)
    return b"".join((*written, rest.SerializeToString()))


def _image(number: int, image: Image, job: Job) -> bytes:
    """Write field `number` of a message, an Image, around its file: this copies that once, protobuf five times."""
    width, height = job.wish.size
    rest = pb.Image(
        format=_NUMBERS[job.wish.format],
        seed=image.seed,
        index=image.index,
        width=width,
        height=height,
        score=image.score,
    ).SerializeToString()
    data = _field(pb.Image.DATA_FIELD_NUMBER, len(image.data))
    return b"".join((_field(number, len(data) + len(image.data) + len(rest)), data, image.data, rest))


def _field(number: int, length: int) -> bytes:
    """Write what stands before `length` bytes of a field, as protobuf does (wire type 2; base 128 varint)."""
    head = bytearray((number << 3 | 2,))
    while length > 127:
        head.append(length & 127 | 128)
        length >>= 7
    head.append(length)
    return bytes(head)


def timings_message(timings: Timings, job: Job) -> pb.Timings:
    return pb.Timings(
        **{f"{part}_ms": ms for part, ms in timings.parts(timings.delivered).items()},
        seats_shared=timings.seats_shared,
        steps=job.wish.table.steps,
        evaluations=job.wish.table.evaluations,
    )


def rank_message(ranks: Ranks) -> pb.RankResponse:
    rows = [pb.Scores(texts=row) for row in ranks.scores.tolist()]
    return pb.RankResponse(pictures=rows, texts_cut=ranks.cut)


def model_message(device: Device, limits: Limits, loras: Sequence[Listed] = ()) -> pb.Model:
    model, default = device.model, device.model.spec.defaults
    width, height = default_size(model, device.sizes)
    features = {
        "style": model.styles is not None,
        "judge": model.judge is not None,
        "loras": model.loras is not None,
        "sizes": model.spec.unet.size_width > 0,
    }
    return pb.Model(
        id=model.id,
        sizes=[pb.Size(width=w, height=h) for w, h in device.sizes],
        samplers=list(SAMPLERS),
        width=width,
        height=height,
        steps=default.steps,
        guidance=default.guidance,
        sampler=default.sampler,
        max_tokens=model.tokenizer.capacity,
        max_clip_skip=model.spec.skips,
        backend=model.backend.name,
        precision=model.backend.precision,
        seats=device.seats,
        weights_digest=model.digest,
        features=[name for name, there in features.items() if there],
        loras=[pb.LoraFile(name=it.name, base=it.base, bytes=it.size, refusal=it.refusal) for it in loras],
        limits=pb.Limits(
            prompt_characters=limits.prompt_characters,
            steps=limits.steps,
            guidance=limits.guidance,
            images=limits.images,
        ),
    )
