"""The child that steps full seats: `python -c` of this file in the clone that is measured, whose engines it imports.

Reads a number of steps from each line of stdin and answers with their milliseconds. Everything imported here is in the
commit before conditions too.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from engines.cpu.stepper import HostStepper
from engines.model import load
from engines.seat import Sitting
from pipeline.checkpoint.opened import open_checkpoint
from pipeline.noise import standard_normal
from pipeline.samplers import table

SEATS = 8


def main() -> None:
    model = load(open_checkpoint(Path(sys.argv[1])))
    spec, backend, tokenizer, default = model.spec, model.backend, model.tokenizer, model.spec.defaults
    size = default.width, default.height
    stepper = HostStepper(backend.denoiser(*size, rows=2 * SEATS), SEATS)
    run = table(spec.schedule, default.sampler, default.steps)
    negative, context = (backend.encode(tokenizer.encode(text).ids) for text in ("", "red apple, color style"))
    noise = [standard_normal(seat, spec.latent_shape(*size), draws=1 + run.draws) for seat in range(SEATS)]
    for line in sys.stdin:
        took: list[float] = []
        while len(took) < int(line):
            for seat in range(SEATS):
                stepper.sit(seat, Sitting(run, noise[seat], context, negative, default.guidance))
            for _ in range(run.evaluations):
                start = time.perf_counter()
                stepper.step(range(SEATS))
                took.append(1e3 * (time.perf_counter() - start))
        print(*took, flush=True)


if __name__ == "__main__":
    main()
