"""The two names that a model has in the Open Inference Protocol, their tensors, metadata and configuration."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.samplers import SAMPLERS
from server.device.loop import Device
from server.doors.oip.inference import inference_pb2 as pb
from server.doors.oip.tensors import Tensor
from server.errors import UnknownModel
from server.limits import Limits
from server.wish import default_size

PLATFORM, VERSION = "latentd", "1"

PROMPT = Tensor("prompt", "BYTES", optional=False)
NEGATIVE = Tensor("negative_prompt", "BYTES")
SEED = Tensor("seed", "INT64")
SAMPLER = Tensor("sampler", "BYTES", 1)
_INPUTS = (
    PROMPT,
    NEGATIVE,
    SEED,
    Tensor("steps", "INT32", 1),
    Tensor("guidance", "FP32", 1),
    SAMPLER,
    Tensor("width", "INT32", 1),
    Tensor("height", "INT32", 1),
    Tensor("init_image", "BYTES", 1),
    Tensor("mask", "BYTES", 1),
    Tensor("style_image", "BYTES", 1),
)
IMAGE = Tensor("image", "BYTES")  # the files
SEEDS = Tensor("seed", "INT64")  # theirs, also where they were drawn
SCORE = Tensor("score", "FP32")  # of those that were kept: how near to the prompt
PREVIEW = Tensor("preview", "BYTES", 1)
INDEX, STEP, STEPS = (Tensor(name, "INT32", 1) for name in ("index", "step", "steps"))

_TYPES = {"BYTES": pb.TYPE_STRING, "INT64": pb.TYPE_INT64, "INT32": pb.TYPE_INT32, "FP32": pb.TYPE_FP32}


@dataclass(frozen=True)
class Named:
    """Holds one of a model's names: `<id>` answers once, `<id>.stream` with each step, preview and picture."""

    name: str
    model: str  # its id
    decoupled: bool

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return (*_INPUTS, Tensor("preview_every", "INT32", 1)) if self.decoupled else _INPUTS

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        return (IMAGE, SEEDS, SCORE, PREVIEW, INDEX, STEP, STEPS) if self.decoupled else (IMAGE, SEEDS, SCORE)


def names_of(model: str) -> tuple[Named, Named]:
    return Named(model, model, False), Named(f"{model}.stream", model, True)


def named(model: str, name: str, version: str = "") -> Named:
    """Return what is called `name`, of the model with this id. Errors: UnknownModel."""
    names = names_of(model)
    for known in names:
        if known.name == name:
            if version not in ("", VERSION):
                raise UnknownModel(f"version is {version[:64]!r}; {name} has {VERSION}")
            return known
    raise UnknownModel(f"model is {name[:64]!r}; this server has {' and '.join(known.name for known in names)}")


def metadata(named: Named) -> pb.ModelMetadataResponse:
    def described(tensor: Tensor) -> pb.ModelMetadataResponse.TensorMetadata:
        return pb.ModelMetadataResponse.TensorMetadata(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)

    return pb.ModelMetadataResponse(
        name=named.name,
        versions=[VERSION],
        platform=PLATFORM,
        inputs=map(described, named.inputs),
        outputs=map(described, named.outputs),
    )


def configuration(named: Named, device: Device, limits: Limits) -> pb.ModelConfig:
    """Return a model's configuration, with what it takes by default and at most as parameters."""
    model, default = device.model, device.model.spec.defaults
    width, height = default_size(model, device.sizes)
    parameters = {
        "sizes": ",".join(f"{w}x{h}" for w, h in device.sizes),
        "samplers": ",".join(SAMPLERS),
        "width": width,
        "height": height,
        "steps": default.steps,
        "guidance": f"{default.guidance:g}",
        "sampler": default.sampler,
        "max_prompt": limits.prompt_characters,
        "max_steps": limits.steps,
        "max_guidance": f"{limits.guidance:g}",
        "max_images": limits.images,
        "weights_digest": model.digest,
    }
    return pb.ModelConfig(
        name=named.name,
        platform=PLATFORM,
        backend=model.backend.name,
        max_batch_size=0,  # the first dimension of `prompt` is no batch of its own: a request's scalars are of all
        input=[
            pb.ModelInput(
                name=tensor.name, data_type=_TYPES[tensor.datatype], dims=tensor.shape, optional=tensor.optional
            )
            for tensor in named.inputs
        ],
        output=[
            pb.ModelOutput(name=tensor.name, data_type=_TYPES[tensor.datatype], dims=tensor.shape)
            for tensor in named.outputs
        ],
        parameters={name: pb.ModelParameter(string_value=str(value)) for name, value in parameters.items()},
        model_transaction_policy=pb.ModelTransactionPolicy(decoupled=named.decoupled),
    )
