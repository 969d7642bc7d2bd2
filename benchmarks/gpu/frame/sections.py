"""The sections of gpu-check, in the order in which they run: what a first card must tell comes first."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Section:
    name: str  # of the file, too
    seconds: float  # in a default run: no case begins later
    guess: float  # what it should take on an H200: an estimate, nothing of it was measured
    default: bool = True
    case_seconds: float = 60  # one case that takes longer is ended, and its section goes on after it; see Case.seconds
    grace: float = 20  # seconds that its last case may still take; 0: what is not done by then has failed


# A section that is asked for by name may take this long: under eight minutes with its start.
ALONE = 450.0
# All default sections together, whatever each may take alone.
TOTAL = 460.0
# Of a case that makes a laboratory: weights, captures, cuDNN's measuring. The section's own limit bounds it, too.
LABORATORY = 150.0

SECTIONS = {
    section.name: section
    for section in (
        Section("captured", 130, 90),
        Section("unet", 80, 50, case_seconds=80),
        Section("profile", 50, 30),
        Section("attention", 80, 65),
        Section("budget", 70, 60),
        Section("kernels", 70, 54),
        Section("vae", 40, 25),
        Section("ceilings", 40, 25),
        Section("environment", 15, 8),
        Section("company", ALONE, 120, default=False),
        Section("forms", ALONE, 60, default=False, case_seconds=80),
        Section("serving", ALONE, 200, default=False, case_seconds=240),
        Section("soak", ALONE, 100, default=False, case_seconds=150),
        Section("inductor", ALONE, 400, default=False, case_seconds=ALONE),
        Section("peer", ALONE, 300, default=False, case_seconds=ALONE),
    )
}
DEFAULT = tuple(name for name, section in SECTIONS.items() if section.default)

# What `make gpu-first` runs, each a process: is anything wrong at all? All of them together, with the start:
FIRST_TOTAL = 145.0
FIRST = (
    Section("first_machine", 40, 30, grace=0),
    Section("first_kernels", 30, 15, case_seconds=20, grace=0),
    Section("first_steps", 30, 20, case_seconds=20, grace=0),
    Section("first_picture", 45, 30, case_seconds=30, grace=0),
)


def chosen(text: str) -> list[Section]:
    """Return the sections that `text` names, separated by commas, in our order; empty: the default ones.

    Errors: ValueError, naming what is unknown and what there is.
    """
    names = [name.strip() for name in text.split(",") if name.strip()] or list(DEFAULT)
    if names == ["all"]:
        names = list(SECTIONS)
    if unknown := [name for name in names if name not in SECTIONS]:
        raise ValueError(f"SECTIONS has {unknown[0]!r}; it takes {', '.join(SECTIONS)}, or all")
    return [section for name, section in SECTIONS.items() if name in names]
