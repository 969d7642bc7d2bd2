"""Every door behind one call: a request in ImageRequest's words, and what came of it in no door's."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.client import HTTPConnection
from typing import Any, Protocol

import grpc

from latentd import Client, ServerError
from latentd.errors import server_error
from latentd.events import Image, Preview
from server.app import Server
from tests.support import oip
from tests.support.patience import PATIENCE
from tests.support.serving import address

Json = dict[str, Any]


@dataclass
class Outcome:
    """What a client has at the end."""

    pictures: list[bytes] = field(default_factory=list)  # in order of index
    previews: list[bytes] = field(default_factory=list)
    code: str = "OK"  # gRPC's
    message: str = ""
    retry_after: float | None = None
    request_id: str | None = None
    numbered: dict[int, bytes] = field(default_factory=dict)
    scores: list[float | None] = field(default_factory=list)  # of the pictures that a judge has looked at
    field: str | None = None  # in the door's words; None where the door names none

    def number(self, index: int, picture: bytes) -> None:
        """Put a picture, which came when it was ready, in its place."""
        self.numbered[index] = picture
        self.pictures = [self.numbered[known] for known in sorted(self.numbered)]


class Sent(Protocol):
    """A request on its way."""

    def outcome(self) -> Outcome:
        """All that comes, read to its end."""
        ...

    def leave(self) -> None:
        """Close the connection."""
        ...


class GrpcSent:
    def __init__(self, server: Server, fields: Json, deadline: float | None) -> None:
        self._client = Client(address(server))
        self._events = self._client.stream(fields.pop("prompt", ""), timeout=deadline or PATIENCE, **fields)
        self._first: list[Any] = []
        self._error: ServerError | None = None
        try:
            self._first = [next(self._events)]  # nothing is sent before
        except ServerError as error:
            self._error = error

    def outcome(self) -> Outcome:
        outcome = Outcome()
        try:
            if self._error is not None:
                raise self._error
            for event in self._events:
                if isinstance(event, Image):
                    outcome.number(event.index, event.data)
                    outcome.scores += [event.score] if event.HasField("score") else []
                elif isinstance(event, Preview):
                    outcome.previews.append(event.jpeg)
        except ServerError as error:
            outcome.code, outcome.message = error.code.name, error.message
            outcome.retry_after, outcome.request_id = error.retry_after, error.request_id
        self._client.close()
        return outcome

    def leave(self) -> None:
        self._events.close()
        self._client.close()


class OipSent:
    """A request to `<id>`, or on a stream of its own to `<id>.stream`, whose `timeout` is the deadline then."""

    def __init__(self, server: Server, fields: Json, deadline: float | None, stream: bool) -> None:
        self._channel = grpc.insecure_channel(address(server))
        name = server.service.model_id
        model, self._stream = fields.pop("model", f"{name}.stream" if stream else name), stream
        patience = PATIENCE
        if stream:
            fields |= {} if deadline is None else {"timeout": round(1e6 * deadline)}
            message = iter([oip.request(model, **fields)])
            self._call: Any = oip.method(self._channel, "ModelStreamInfer")(message, timeout=patience)
        else:
            method = oip.method(self._channel, "ModelInfer")
            self._call = method.future(oip.request(model, **fields), timeout=deadline or patience)

    def outcome(self) -> Outcome:
        outcome = Outcome()
        try:
            for answer in self._call if self._stream else [self._call.result()]:
                if getattr(answer, "error_message", ""):
                    told = {name: oip.parameter(value) for name, value in answer.infer_response.parameters.items()}
                    outcome.code, outcome.message = told["code"], answer.error_message
                    outcome.retry_after, outcome.field = told.get("retry_after"), told.get("field")
                    outcome.request_id = told["request_id"]
                    continue
                values = oip.outputs(answer.infer_response if self._stream else answer)
                for index, picture in enumerate(values.get("image", []), values.get("index", [0])[0]):
                    outcome.number(index, picture)
                outcome.previews += values.get("preview", [])
                outcome.scores += values.get("score", [])
        except grpc.RpcError as error:
            failed = server_error(error, "")
            outcome.code, outcome.message = failed.code.name, failed.message
            outcome.retry_after, outcome.request_id = failed.retry_after, failed.request_id
        self._channel.close()
        return outcome

    def leave(self) -> None:
        self._call.cancel()
        self._channel.close()


class HttpSent:
    """`read` makes an outcome of a good answer's events or JSON, `refusal` one of a body that tells of an error."""

    def __init__(
        self, server: Server, path: str, body: bytes, kind: str, deadline: float | None, door: HttpDoor
    ) -> None:
        self._connection = HTTPConnection("127.0.0.1", server.http_port, timeout=PATIENCE)
        headers = {"Content-Type": kind}
        if deadline is not None:
            headers["X-Deadline-Ms"] = f"{1e3 * deadline:.0f}"
        self._connection.request("POST", path, body, headers)
        self._door = door

    def outcome(self) -> Outcome:
        answer = self._connection.getresponse()
        data, outcome = answer.read().decode(), Outcome()
        if answer.status != 200:
            self._door.refusal(json.loads(data), outcome)
            retry = answer.headers["retry-after"]
            outcome.retry_after = None if retry is None else float(retry)
        elif answer.headers["content-type"].startswith("text/event-stream"):
            for name, content in events_of(data):
                self._door.event(name, content, outcome)
        else:
            self._door.answer(json.loads(data), outcome)
        outcome.request_id = answer.headers["x-request-id"]
        self._connection.close()
        return outcome

    def leave(self) -> None:
        self._connection.close()


def events_of(text: str) -> Iterator[tuple[str, Json]]:
    """Name and data of each of server-sent events."""
    for block in text.split("\n\n"):
        if block:
            name, data = block.split("\n")
            yield name.removeprefix("event: "), json.loads(data.removeprefix("data: "))


@dataclass(frozen=True)
class Door:
    name: str
    label: str  # of metrics
    names: dict[str, str] = field(default_factory=dict)  # fields of ImageRequest that it calls otherwise
    streams: bool = True  # previews come by the same connection
    most: int | None = None  # pictures of a request; None: the limit's

    def send(self, server: Server, deadline: float | None = None, **fields: Any) -> Sent:
        return GrpcSent(server, fields, deadline)

    def ask(self, server: Server, deadline: float | None = None, **fields: Any) -> Outcome:
        return self.send(server, deadline, **fields).outcome()


@dataclass(frozen=True)
class OipDoor(Door):
    def send(self, server: Server, deadline: float | None = None, **fields: Any) -> Sent:
        return OipSent(server, fields, deadline, self.streams)


@dataclass(frozen=True)
class HttpDoor(Door):
    path: str = ""
    body: Callable[[Json], Json] = lambda fields: fields

    def send(self, server: Server, deadline: float | None = None, **fields: Any) -> Sent:
        body = json.dumps(self.body(fields), default=lambda picture: base64.b64encode(picture).decode())
        return HttpSent(server, self.path_of(fields), body.encode(), "application/json", deadline, self)

    def path_of(self, fields: Json) -> str:
        return self.path

    def refusal(self, body: Json, outcome: Outcome) -> None:
        error = body["error"]
        outcome.code, outcome.message, outcome.field = error["code"], error["message"], error["field"]

    def answer(self, body: Json, outcome: Outcome) -> None:
        raise AssertionError(body)

    def event(self, name: str, content: Json, outcome: Outcome) -> None:
        match name:
            case "image":
                outcome.number(content["index"], base64.b64decode(content["data"]))
                outcome.scores += [] if content["score"] is None else [content["score"]]
            case "preview":
                outcome.previews.append(base64.b64decode(content["jpeg"]))
            case "error":
                self.refusal({"error": content}, outcome)


class OpenAiDoor(HttpDoor):
    _CODES = {  # noqa: RUF012
        "invalid_value": "INVALID_ARGUMENT",
        "unknown_parameter": "INVALID_ARGUMENT",
        "model_not_found": "NOT_FOUND",
        "rate_limit_exceeded": "RESOURCE_EXHAUSTED",
        "unavailable": "UNAVAILABLE",
        "deadline_exceeded": "DEADLINE_EXCEEDED",
        "server_error": "INTERNAL",
    }

    def refusal(self, body: Json, outcome: Outcome) -> None:
        error = body["error"]
        outcome.code, outcome.message = self._CODES[error["code"]], error["message"]
        outcome.field = error["param"]

    def send(self, server: Server, deadline: float | None = None, **fields: Any) -> Sent:
        """Send what begins with a picture as a form, with its pictures as files."""
        if "init_image" not in fields:
            return super().send(server, deadline, **fields)
        body = self.body(fields)
        body["image"] = body.pop("init_image")
        data, kind = form_of(body)
        return HttpSent(server, "/v1/images/edits", data, kind, deadline, self)

    def answer(self, body: Json, outcome: Outcome) -> None:
        outcome.pictures = [base64.b64decode(entry["b64_json"]) for entry in body["data"]]
        outcome.scores = [entry["score"] for entry in body["data"] if "score" in entry]

    def event(self, name: str, content: Json, outcome: Outcome) -> None:
        assert content["type"] == name
        match name:
            case "image_generation.completed" | "image_edit.completed":
                outcome.pictures.append(base64.b64decode(content["b64_json"]))
                outcome.scores += [content["score"]] if "score" in content else []
            case "image_generation.partial_image" | "image_edit.partial_image":
                outcome.previews.append(base64.b64decode(content["b64_json"]))
            case "error":
                self.refusal(content, outcome)


class A1111Door(HttpDoor):
    def refusal(self, body: Json, outcome: Outcome) -> None:
        outcome.code, outcome.message = body["error"], body["detail"]

    def path_of(self, fields: Json) -> str:
        return "/sdapi/v1/img2img" if "init_image" in fields else self.path

    def answer(self, body: Json, outcome: Outcome) -> None:
        outcome.pictures = [base64.b64decode(picture) for picture in body["images"]]
        outcome.scores = json.loads(body["info"]).get("scores", [])


def form_of(fields: Json) -> tuple[bytes, str]:
    """A form (multipart/form-data) and its type: bytes are files, the rest is text as clients write it."""
    parts = []
    for name, value in fields.items():
        head = f'--part\r\nContent-Disposition: form-data; name="{name}"'
        if isinstance(value, bytes):
            parts.append(f'{head}; filename="{name}.png"\r\nContent-Type: image/png\r\n\r\n'.encode() + value)
        else:
            text = value if isinstance(value, str) else json.dumps(value)
            parts.append(f"{head}\r\n\r\n{text}".encode())
    return b"\r\n".join([*parts, b"--part--\r\n"]), "multipart/form-data; boundary=part"


OIP_NAMES = {"images": "the length of prompt"}
OPENAI_NAMES = {"images": "n", "format": "output_format", "width": "size"}
OPENAI_NAMES |= {"init_image": "image"}
A1111_NAMES = {"images": "batch_size", "guidance": "cfg_scale", "sampler": "sampler_name"}
A1111_NAMES |= {"strength": "denoising_strength"}
A1111_SCRIPT = ("style_image", "style_weight", "keep", "guidance_start", "guidance_end")
A1111_SCRIPT += ("original_size", "crop", "target_size")


def _openai(fields: Json, **more: Any) -> Json:
    names = {name: theirs for name, theirs in OPENAI_NAMES.items() if name != "init_image"}
    body = {names.get(name, name): value for name, value in fields.items() if name not in ("width", "height")}
    if "preview_every" in body:
        body["partial_images"] = 3
        del body["preview_every"]
    if "width" in fields:
        body["size"] = f"{fields['width']}x{fields['height']}"
    return {"prompt": "", **body, **more}


def _a1111(fields: Json) -> Json:
    body = {A1111_NAMES.get(name, name): value for name, value in fields.items()}
    body.pop("preview_every", None)
    if "model" in body:
        body["override_settings"] = {"sd_model_checkpoint": body.pop("model")}
    if "format" in body:
        body["override_settings"] = {"samples_format": body.pop("format")}
    if "init_image" in body:
        body["init_images"] = [body.pop("init_image")]
    if "fit" in body:
        body["resize_mode"] = ["resize", "crop", "pad"].index(body.pop("fit"))
    if ours := {name: body.pop(name) for name in A1111_SCRIPT if name in body}:
        body["alwayson_scripts"] = {"latentd": {"args": [ours]}}
    return body


DOORS = [
    Door("grpc", "grpc"),
    OipDoor("oip", "oip", OIP_NAMES, False),
    OipDoor("oip_stream", "oip", OIP_NAMES),
    OpenAiDoor("openai", "openai", OPENAI_NAMES, False, path="/v1/images/generations", body=_openai),
    OpenAiDoor(
        *("openai_stream", "openai", OPENAI_NAMES, True, 1),
        path="/v1/images/generations",
        body=lambda fields: _openai(fields, stream=True),
    ),
    A1111Door("a1111", "a1111", A1111_NAMES, False, path="/sdapi/v1/txt2img", body=_a1111),
    HttpDoor("page", "page", path="/api/generate"),
]
