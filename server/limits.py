"""The limits that every door enforces alike, with their defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from pipeline.errors import InvalidRequest

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Limits:
    prompt_characters: int = 4096
    steps: int = 150
    guidance: float = 30.0
    images: int = 8
    priority_callers: tuple[str, ...] = ()  # who may have a priority above 0: addresses, networks, "local"
    style_weight: float = 2.0
    loras: int = 8
    lora_weight: float = 10.0  # and as much below 0
    lora_name: int = 128  # characters
    side: int = 16384  # pixels of a size that SDXL is told of
    texts: int = 16  # to rank pictures by
    blocking_bytes: int = (4 << 20) - (64 << 10)  # stock gRPC clients accept 4 MiB; 64 KiB are for the rest


def within(field: str, value: Number, least: Number, most: Number) -> Number:
    """Return `value`, or raise InvalidRequest naming field, value and limit. NaN is outside everything."""
    if not least <= value <= most:  # which no NaN is
        shown = f"{value:g}" if isinstance(value, float) else str(value)[:64]
        raise InvalidRequest(f"{field} is {shown}; it must be {least:.15g} to {most:.15g}", field)
    return value


def decimal(value: float) -> float:
    """Return the number that a client wrote, where a door may have it as a float32: 0.7, and not 0.699999988."""
    return float(str(np.float32(value))) if abs(value) < 1e6 else value  # larger than any of ours, or not a number


def checked_text(field: str, text: str, most: int) -> str:
    if len(text) > most:
        raise InvalidRequest(f"{field} has {len(text)} characters; at most {most} are taken", field)
    if (position := text.find("\0")) >= 0:
        raise InvalidRequest(f"{field} has a NUL character at position {position}; text has none", field)
    return text


def one_of(field: str, value: str, choices: list[str]) -> str:
    if value not in choices:
        raise InvalidRequest(f"{field} is {value[:64]!r}; it must be one of {', '.join(choices)}", field)
    return value
