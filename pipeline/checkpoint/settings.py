"""latentd.json: a model's own defaults, which whoever serves it writes beside its configs, or beside a single file."""

from __future__ import annotations

import difflib

from pipeline.config import Config

SETTINGS = "latentd.json"
# What an absent field of a request means; and what a single file cannot tell of its schedule.
_DEFAULTS = ("steps", "guidance", "sampler", "width", "height")
_SCHEDULE = ("prediction", "rescale_betas_zero_snr")


def check_settings(config: Config) -> None:
    """Check the keys. Errors: CheckpointError for one that is none of ours: nobody else writes this file."""
    known = (*_DEFAULTS, *_SCHEDULE)
    for key in config:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            raise config.refusal(
                key[:64], f"did you mean {near[0]}?" if near else f"latentd.json takes {', '.join(known)}"
            )
