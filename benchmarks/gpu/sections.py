"""The sections of gpu-check, in the order in which they run: the most valuable facts first."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Section:
    name: str  # of the file, too
    seconds: float  # in a default run: no case begins later
    guess: float  # what it should take on an H200: an estimate, nothing of it was measured
    default: bool = True
    case_seconds: float = 60  # one case that takes longer is ended, and its section goes on after it


# A section that is asked for by name may take this long: under eight minutes with its start.
ALONE = 450.0
# All default sections together, whatever each may take alone.
TOTAL = 460.0

SECTIONS = {
    section.name: section
    for section in (
        Section("environment", 15, 8),
        Section("ceilings", 40, 25),
        Section("attention", 105, 95, case_seconds=80),
        Section("kernels", 70, 54),
        Section("unet", 80, 66, case_seconds=80),
        Section("vae", 40, 25),
        Section("budget", 85, 72),
        Section("captured", 110, 100, case_seconds=120),
        Section("profile", 60, 30, default=False),
        Section("forms", ALONE, 60, default=False, case_seconds=80),
        Section("fp8", ALONE, 60, default=False),
        Section("serving", ALONE, 200, default=False, case_seconds=240),
        Section("soak", ALONE, 100, default=False, case_seconds=150),
        Section("compiled", ALONE, 400, default=False, case_seconds=ALONE),
        Section("peer", ALONE, 300, default=False, case_seconds=ALONE),
    )
}
DEFAULT = tuple(name for name, section in SECTIONS.items() if section.default)


def chosen(text: str) -> list[Section]:
    """The sections that `text` names, separated by commas, in our order; empty: the default ones.

    Errors: ValueError, naming what is unknown and what there is.
    """
    names = [name.strip() for name in text.split(",") if name.strip()] or list(DEFAULT)
    if names == ["all"]:
        names = list(SECTIONS)
    if unknown := [name for name in names if name not in SECTIONS]:
        raise ValueError(f"SECTIONS has {unknown[0]!r}; it takes {', '.join(SECTIONS)}, or all")
    return [section for name, section in SECTIONS.items() if name in names]
