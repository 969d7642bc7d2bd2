"""The command line: prompts out at once, pictures and films into files, a line about each."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from argparse import Namespace
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from math import ceil
from pathlib import Path
from typing import NoReturn

from latentd.aio import AsyncClient
from latentd.errors import ServerError
from latentd.events import Event, Preview, Queued
from latentd.film import Film
from latentd.names import STDOUT, Place, Target, file_format, is_folder, places, try_writing
from latentd.options import hints, parse
from latentd.picture import Picture, Timings
from latentd.progress import Bars, Progress, title
from latentd.request import Options, build_request, read_upload
from latentd.terminal import Screen, can_draw
from latentd.v1 import images_pb2 as pb
from latentd.variables import strangers


def run(argv: Sequence[str]) -> int:
    """Run the command line once; the exit code. Raises SystemExit(2) for bad usage, KeyboardInterrupt for Ctrl-C."""
    options = parse(argv)
    for sentence in strangers(os.environ):
        _complain(sentence)
    try:
        client = AsyncClient(
            options.server,
            key=options.key,
            tls=options.tls,
            tls_ca=options.tls_ca,
            tls_client_cert=options.tls_client_cert,
            tls_client_key=options.tls_client_key,
        )
    except ValueError as error:
        _usage(str(error))
    if options.list_models:
        return asyncio.run(_list_models(client, options.timeout or 10))
    try:
        format = file_format(options.output, options.format, options.liked_format)
        delivered = options.images if options.keep is None else max(1, min(options.keep, options.images))
        targets = places(options.prompts, delivered, options.output, format, options.film)
        if options.output == STDOUT and sys.stdout.isatty():
            raise ValueError(
                "-o - writes a picture's bytes, and stdout is a terminal; say where they go: -o - > apple.png"
            )
        fields = _fields(options, format)
        for prompt in options.prompts:
            build_request(prompt, **fields)
    except ValueError as error:
        _usage(str(error))
    except OSError as error:
        _usage(f"cannot read {error.filename}: {error.strerror}")
    new = is_folder(options.output) and not Path(options.output).exists()
    try:
        if not _writable(options.output, [place for row in targets for place in row]):
            return 1
        return asyncio.run(_generate(client, options, fields, targets))
    finally:
        if new:  # one in which no picture came to lie goes again
            with contextlib.suppress(OSError):
                Path(options.output).rmdir()


def _fields(options: Namespace, format: str) -> Options:
    width, height = options.size or (None, None)
    return Options(
        negative_prompt=options.negative,
        width=width,
        height=height,
        steps=options.steps,
        guidance=options.guidance,
        sampler=options.sampler,
        seed=options.seed,
        images=options.images,
        long_prompt=options.long_prompt,
        prompt_weights=options.prompt_weights,
        clip_skip=options.clip_skip,
        guidance_start=options.guidance_start,
        guidance_end=options.guidance_end,
        init_image=_file("--init", options.init),
        strength=options.strength,
        mask=_file("--mask", options.mask),
        fit=options.fit or "",
        style_image=_file("--style", options.style),
        style_weight=options.style_weight,
        loras=options.lora,
        keep=options.keep,
        original_size=options.original_size,
        crop=options.crop,
        target_size=options.target_size,
        format=format,
        preview_every=1 if options.film or (options.preview and can_draw()) else 0,
        priority=options.priority,
        model=options.model,
    )


def _file(flag: str, path: str | None) -> bytes | None:
    """Read a picture's file, once for all prompts. Raises as read_upload does."""
    return read_upload(flag, path) if path else None


def _writable(output: str, targets: Sequence[Place]) -> bool:
    """Return whether every file can be written; stderr says if not: no minute of drawing should end in a typo."""
    paths = [target.path for place in targets for target in (place.picture, place.film) if target]
    path = Path(output)
    try:
        if is_folder(output):
            path.mkdir(parents=True, exist_ok=True)
        for path in paths:
            try_writing(path)
    except OSError as error:
        _complain(f"cannot write {path}: {error.strerror}")
        return False
    return True


async def _generate(client: AsyncClient, options: Namespace, fields: Options, targets: list[list[Place]]) -> int:
    if options.preview and not can_draw():
        _complain("--preview needs a terminal with colours; going on without it")
    for hint in hints(options):
        _complain(hint)
    progress: Progress = Screen(options.prompts) if options.preview and can_draw() else Bars(options.prompts)
    complaints: list[str] = []
    try:
        async with client:
            sent = [
                _Sent(client, progress, request, row, complaints).fetch(prompt, fields, options.timeout)
                for request, (prompt, row) in enumerate(zip(options.prompts, targets, strict=True))
            ]
            await asyncio.gather(*sent)
    finally:
        progress.close()
    for complaint in dict.fromkeys(complaints):  # one server that does not answer is one sentence, not one a prompt
        _complain(complaint)
    return 1 if complaints else 0


class _Sent:
    """Takes one prompt on its way: its events to the progress, its pictures and films to their places."""

    def __init__(
        self, client: AsyncClient, progress: Progress, request: int, row: list[Place], complaints: list[str]
    ) -> None:
        self._client, self._progress, self._request, self._row = client, progress, request, row
        self._complaints = complaints
        self._films: defaultdict[int, Film] = defaultdict(Film)  # by a picture's index
        self._queued: Queued | None = None
        self._long = False  # its prompt is read beyond the encoder's length

    async def fetch(self, prompt: str, fields: Options, timeout: float | None) -> None:
        self._long = fields.get("long_prompt", False)
        try:
            pictures = await self._client.generate(prompt, timeout=timeout, on_event=self._event, **fields)
        except ServerError as error:
            pictures = error.pictures
            self._complaints.append(_failed(error, self._queued.request_id if self._queued else ""))
        for number, picture in enumerate(pictures):
            place = self._row[number if fields.get("keep") else picture.index]  # of those kept, the so manieth
            name = await self._written(place.picture, picture.save) if place.picture else _on_stdout(picture)
            if name:
                took = _took(picture.timings) if len(self._row) == 1 else ""
                self._say(f"{name}: {_about(picture, self._queued)}{took}")
            film = partial(self._films[picture.index].save, picture)
            if place.film and (moving := await self._written(place.film, film)):
                self._say(f"{moving}: the picture forming")
        if len(pictures) > 1:  # the times are of the request, and not each picture's
            self._say(f"{title(prompt)}: {len(pictures)} pictures{_took(pictures[0].timings)}")

    async def _written(self, target: Target, write: Callable[[Path], object]) -> str:
        """Write a file; return its name, and that another was replaced, for a line about it. "": see complaints."""
        path, replaced, claimed = target.path, False, False
        try:
            path, replaced = target.claim()
            claimed = not replaced
            await asyncio.to_thread(write, path)  # a film takes a second to encode; the other prompts go on
        except OSError as error:
            self._complaints.append(f"cannot write {path}: {error.strerror or error}")
            if claimed:
                path.unlink(missing_ok=True)
            return ""
        return f"{path} (replaced)" if replaced else str(path)

    def _say(self, line: str) -> None:
        self._progress.say(line, error=self._row[0].picture is None)  # where stdout is the picture's

    def _event(self, event: Event) -> None:
        self._progress.event(self._request, event)
        if isinstance(event, Preview):
            self._films[event.index].add(event)
        elif isinstance(event, Queued):
            self._queued = event
            end = "its end is ignored" + ("" if self._long else "; --long-prompt has it read on")
            for name, cut in (("prompt", event.prompt_cut), ("negative prompt", event.negative_prompt_cut)):
                if cut:
                    self._progress.say(f"the {name} has more tokens than the model reads; {end}", True)


def _on_stdout(picture: Picture) -> str:
    """Write the file that the server sent. Raises BrokenPipeError where the reader has left."""
    sys.stdout.buffer.write(picture.data)
    sys.stdout.buffer.flush()
    return "stdout"


def _about(picture: Picture, queued: Queued | None) -> str:
    """Describe what draws the picture again, and how near it is to its prompt where that was judged."""
    words = [] if picture.score is None else [f"score {picture.score:.2f}"]
    words += [f"seed {picture.seed}", f"{picture.width}x{picture.height}"]
    if queued:
        words += [f"{queued.steps} steps of {queued.sampler}", f"guidance {queued.guidance:g}"]
    return ", ".join(words)


def _took(took: Timings | None) -> str:
    """Say where a request's time went, to be appended: parts that add up, and how many shared the steps."""
    if took is None:
        return ""
    parts = {
        "read": f"{took.read_ms:.0f} ms" if took.read_ms else "",
        "queue": f"{took.queue_ms:.0f} ms",
        "encode": f"{took.encode_ms:.0f} ms",
        "denoise": f"{took.denoise_ms:.0f} ms ({took.seats_shared:.1f} seats shared)",
        "decode wait": f"{took.decode_wait_ms:.0f} ms",
        "decode": f"{took.decode_ms:.0f} ms",
        "judge": f"{took.judge_ms:.0f} ms" if took.judge_ms else "",
        "file": f"{took.file_ms:.0f} ms",
        "delivery": f"{took.delivery_ms:.0f} ms",
    }
    return "".join(f", {name} {words}" for name, words in parts.items() if words)


def _failed(error: ServerError, request_id: str = "") -> str:
    """Write one line about a failed call: the sentence, when to try again, and what finds it in the server's log."""
    retry = f"; try again in {ceil(error.retry_after)} s" if error.retry_after else ""
    request_id = error.request_id or request_id
    where = f", request {request_id}" if request_id else ""
    return f"{error.message}{retry} ({error.code.name}{where})"


async def _list_models(client: AsyncClient, timeout: float) -> int:
    try:
        async with client:
            models = await client.models(timeout=timeout)
    except ServerError as error:
        _complain(_failed(error))
        return 1
    for model in models:
        print(_described(model))
    return 0


def _described(model: pb.Model) -> str:
    limits = model.limits
    return "\n".join(
        [
            f"{model.id}  ({model.backend}, {model.precision}, {model.seats} seats)",
            f"  defaults  {model.width}x{model.height}, {model.steps} steps, "
            f"guidance {model.guidance:g}, {model.sampler}",
            f"  sizes     {', '.join(f'{size.width}x{size.height}' for size in model.sizes)}",
            f"  samplers  {', '.join(model.samplers)}",
            f"  limits    {limits.images} pictures, {limits.steps} steps, guidance {limits.guidance:g}, "
            f"{model.max_tokens} tokens, {limits.prompt_characters} characters, clip skip {model.max_clip_skip}",
            *([f"  features  {', '.join(model.features)}"] if model.features else []),
            *(f"  lora      {_lora(lora)}" for lora in model.loras),
        ]
    )


def _lora(lora: pb.LoraFile) -> str:
    why = f": {lora.refusal}" if lora.refusal else ""
    return f"{lora.name} ({', '.join([*([lora.base] if lora.base else []), f'{lora.bytes / 1e6:.1f} MB'])}){why}"


def _complain(sentence: str) -> None:
    print(f"latentd: {sentence}", file=sys.stderr, flush=True)


def _usage(sentence: str) -> NoReturn:
    _complain(f"{sentence} (see --help)")
    raise SystemExit(2)
