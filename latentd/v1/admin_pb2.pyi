from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Stage(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STAGE_UNSPECIFIED: _ClassVar[Stage]
    STAGE_CHECKING: _ClassVar[Stage]
    STAGE_LOADING: _ClassVar[Stage]
    STAGE_MAKING: _ClassVar[Stage]
    STAGE_MEASURING: _ClassVar[Stage]
    STAGE_DRAINING: _ClassVar[Stage]
    STAGE_DONE: _ClassVar[Stage]
STAGE_UNSPECIFIED: Stage
STAGE_CHECKING: Stage
STAGE_LOADING: Stage
STAGE_MAKING: Stage
STAGE_MEASURING: Stage
STAGE_DRAINING: Stage
STAGE_DONE: Stage

class SwapRequest(_message.Message):
    __slots__ = ("model", "prediction")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PREDICTION_FIELD_NUMBER: _ClassVar[int]
    model: str
    prediction: str
    def __init__(self, model: _Optional[str] = ..., prediction: _Optional[str] = ...) -> None: ...

class SwapStage(_message.Message):
    __slots__ = ("stage", "seconds", "left")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    LEFT_FIELD_NUMBER: _ClassVar[int]
    stage: Stage
    seconds: float
    left: int
    def __init__(self, stage: _Optional[_Union[Stage, str]] = ..., seconds: _Optional[float] = ..., left: _Optional[int] = ...) -> None: ...

class StateRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StateResponse(_message.Message):
    __slots__ = ("model", "weights_digest", "models", "swapping_to", "stage")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    SWAPPING_TO_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    model: str
    weights_digest: str
    models: _containers.RepeatedScalarFieldContainer[str]
    swapping_to: str
    stage: SwapStage
    def __init__(self, model: _Optional[str] = ..., weights_digest: _Optional[str] = ..., models: _Optional[_Iterable[str]] = ..., swapping_to: _Optional[str] = ..., stage: _Optional[_Union[SwapStage, _Mapping]] = ...) -> None: ...
