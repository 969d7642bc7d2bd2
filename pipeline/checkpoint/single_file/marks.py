"""What a single file says of the schedule that it was trained on: marker tensors, and its metadata.

Trainers and tools write it in several places. Whatever two of them contradict each other in is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.checkpoint.single_file.kinds import SD2, Family
from pipeline.errors import CheckpointError

# Empty tensors, by which ComfyUI and some trainers mark their files.
V, ZERO_SNR = "v_pred", "ztsnr"
MARKERS = (V, ZERO_SNR)
# Stability AI's ModelSpec 1.0 has the first; ComfyUI writes the second.
_SPOKEN = ("modelspec.prediction_type", "modelspec.predict_key")
_MEANING = {"epsilon": "epsilon", "eps": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction"}
# ModelSpec's architectures of SD 2, whose two predictions have equal shapes.
_ARCHITECTURE = "modelspec.architecture"
_ARCHITECTURES = {"stable-diffusion-v2-512": "epsilon", "stable-diffusion-v2-768-v": "v_prediction"}


@dataclass(frozen=True)
class Trained:
    """Says how the schedule of a single file was trained."""

    prediction: str  # "epsilon" or "v_prediction"
    zero_snr: bool  # to a last timestep without signal


def trained(
    path: Path,
    family: Family,
    tensors: Iterable[str],
    metadata: Mapping[str, str],
    *,
    prediction: str | None = None,
    zero_snr: bool | None = None,
    settings: str,
) -> Trained:
    """Read the marks; `prediction` and `zero_snr`, where somebody gave them, win over these.

    `settings` is the file beside it that answers for good. Errors: CheckpointError where the marks contradict each
    other or say nothing that is known, and where an SD 2 file says nothing at all.
    """
    marks = {name for name in tensors if name in MARKERS}
    prediction = prediction or _prediction(path, family, V in marks, metadata, settings)
    return Trained(prediction, ZERO_SNR in marks if zero_snr is None else zero_snr)


def _prediction(path: Path, family: Family, marked: bool, metadata: Mapping[str, str], settings: str) -> str:
    said = {f"its tensor {V}": "v_prediction"} if marked else {}
    for key in _SPOKEN:
        if (value := metadata.get(key)) is not None:
            if value.lower() not in _MEANING:
                raise CheckpointError(f"{path}: {key} is {value[:64]!r} in its metadata; {_answer(settings)}")
            said[key] = _MEANING[value.lower()]
    architecture = metadata.get(_ARCHITECTURE, "").lower()
    if architecture in _ARCHITECTURES:
        said[_ARCHITECTURE] = _ARCHITECTURES[architecture]
    if len(set(said.values())) > 1:
        statements = ", ".join(f"{where} says {what}" for where, what in said.items())
        raise CheckpointError(f"{path} contradicts itself: {statements}; {_answer(settings)}")
    if said:
        return next(iter(said.values()))
    if family is not SD2:
        return "epsilon"
    raise CheckpointError(
        f"{path} is a {family.name} model and does not tell what it predicts: give --prediction epsilon (SD 2-base, "
        f"SD 2.1-base, SD-Turbo) or --prediction v_prediction (SD 2 and SD 2.1, the ones of 768x768); with make "
        f'PREDICTION=..., or for good as {{"prediction": "..."}} in {settings} beside it'
    )


def _answer(settings: str) -> str:
    return (
        f"give --prediction epsilon or --prediction v_prediction, or for good "
        f'{{"prediction": "..."}} in {settings} beside it'
    )
