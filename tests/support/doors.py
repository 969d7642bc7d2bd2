"""Every door behind one call: a request in ImageRequest's words, and what came of it in no door's."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any, Protocol

import grpc

from latentd import Client, ServerError
from latentd.errors import server_error
from latentd.events import Image, Preview
from server.app import Server
from tests.support import oip
from tests.support.patience import PATIENCE
from tests.support.serving import address
from tests.support.visitor import STRANGER, Visitor

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
    def __init__(self, server: Server, fields: Json, deadline: float | None, visitor: Visitor) -> None:
        self._client = Client(address(server), **visitor.access())
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

    def __init__(self, server: Server, fields: Json, deadline: float | None, stream: bool, visitor: Visitor) -> None:
        self._channel, metadata = visitor.channel(server), visitor.metadata()
        name = server.service.model_id
        model, self._stream = fields.pop("model", f"{name}.stream" if stream else name), stream
        patience = PATIENCE
        if stream:
            fields |= {} if deadline is None else {"timeout": round(1e6 * deadline)}
            message = iter([oip.request(model, **fields)])
            self._call: Any = oip.method(self._channel, "ModelStreamInfer")(
                message, timeout=patience, metadata=metadata
            )
        else:
            method = oip.method(self._channel, "ModelInfer")
            self._call = method.future(oip.request(model, **fields), timeout=deadline or patience, metadata=metadata)

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
        self,
        server: Server,
        path: str,
        body: bytes,
        kind: str,
        deadline: float | None,
        door: HttpDoor,
        visitor: Visitor,
    ) -> None:
        self._connection = visitor.connection(server.http_port)
        headers = {"Content-Type": kind, **visitor.headers(basic=door.label == "a1111")}
        if deadline is not None:
            headers["X-Deadline-Ms"] = f"{1e3 * deadline:.0f}"
        self._lost: Exception | None = None
        try:
            self._connection.request("POST", path, body, headers)
        except OSError as error:  # of TLS
            self._lost = error
        self._door = door

    def outcome(self) -> Outcome:
        try:
            if self._lost is not None:
                raise self._lost
            answer = self._connection.getresponse()
        except (OSError, HTTPException) as error:
            self._connection.close()
            return Outcome(code="UNAVAILABLE", message=repr(error))
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

    def send(
        self, server: Server, deadline: float | None = None, *, visitor: Visitor = STRANGER, **fields: Any
    ) -> Sent:
        return GrpcSent(server, fields, deadline, visitor)

    def ask(
        self, server: Server, deadline: float | None = None, *, visitor: Visitor = STRANGER, **fields: Any
    ) -> Outcome:
        return self.send(server, deadline, visitor=visitor, **fields).outcome()


@dataclass(frozen=True)
class OipDoor(Door):
    def send(
        self, server: Server, deadline: float | None = None, *, visitor: Visitor = STRANGER, **fields: Any
    ) -> Sent:
        return OipSent(server, fields, deadline, self.streams, visitor)


@dataclass(frozen=True)
class HttpDoor(Door):
    path: str = ""
    body: Callable[[Json], Json] = lambda fields: fields

    def send(
        self, server: Server, deadline: float | None = None, *, visitor: Visitor = STRANGER, **fields: Any
    ) -> Sent:
        body = json.dumps(self.body(fields), default=lambda picture: base64.b64encode(picture).decode())
        return HttpSent(server, self.path_of(fields), body.encode(), "application/json", deadline, self, visitor)

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
        "invalid_api_key": "UNAUTHENTICATED",
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

    def send(
        self, server: Server, deadline: float | None = None, *, visitor: Visitor = STRANGER, **fields: Any
    ) -> Sent:
        """Send what begins with a picture as a form, with its pictures as files."""
        if "init_image" not in fields:
            return super().send(server, deadline, visitor=visitor, **fields)
        body = self.body(fields)
        body["image"] = body.pop("init_image")
        data, kind = form_of(body)
        return HttpSent(server, "/v1/images/edits", data, kind, deadline, self, visitor)

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


@dataclass(frozen=True)
class Method(Door):
    """A method of gRPC's that makes no pictures, asked with an empty message."""

    path: str = ""

    def ask(
        self, server: Server, deadline: float | None = None, *, visitor: Visitor = STRANGER, **fields: Any
    ) -> Outcome:
        outcome = Outcome()
        with visitor.channel(server) as channel:
            try:
                list(channel.stream_stream(self.path)(iter([b""]), timeout=PATIENCE, metadata=visitor.metadata()))
            except grpc.RpcError as error:
                failed = server_error(error, "")
                outcome.code, outcome.message = failed.code.name, failed.message
                outcome.retry_after = failed.retry_after
        return outcome


@dataclass(frozen=True)
class Path(Door):
    """A path of HTTP that makes no pictures, asked with GET. `port`: the server's attribute that has it."""

    path: str = ""
    port: str = "http_port"

    def ask(
        self, server: Server, deadline: float | None = None, *, visitor: Visitor = STRANGER, **fields: Any
    ) -> Outcome:
        connection, outcome = visitor.connection(getattr(server, self.port)), Outcome()
        try:
            connection.request("GET", self.path, headers=visitor.headers(basic=self.label == "a1111"))
            answer = connection.getresponse()
            outcome.message, retry = answer.read().decode(), answer.headers["retry-after"]
            outcome.retry_after = None if retry is None else float(retry)
            codes = {200: "OK", 401: "UNAUTHENTICATED", 404: "NOT_FOUND", 429: "RESOURCE_EXHAUSTED"}
            outcome.code = codes[answer.status]
            assert (answer.headers["www-authenticate"] is not None) == (answer.status == 401)
        except (OSError, HTTPException) as error:
            outcome.code, outcome.message = "UNAVAILABLE", repr(error)
        finally:
            connection.close()
        return outcome


# All that may be asked of a server, for what each of them must keep: who may come. Whatever is listed nowhere here
# fails tests/server/doors/test_access.py.
ENTRANCES = [
    *DOORS,
    Method("list_models", "grpc", path="/latentd.v1.Images/ListModels"),
    Method("oip_metadata", "oip", path="/inference.GRPCInferenceService/ServerMetadata"),
    Method("admin_state", "admin", path="/latentd.v1.Admin/State"),
    Method("reflection", "reflection", path="/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"),
    Method("reflection_alpha", "reflection", path="/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"),
    Path("openai_models", "openai", path="/v1/models"),
    Path("a1111_options", "a1111", path="/sdapi/v1/options"),
    Path("page_model", "page", path="/api/model"),
    Path("schema", "page", path="/openapi.json"),
    Path("metrics", "metrics", path="/metrics", port="metrics_port"),
]
