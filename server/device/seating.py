"""Seating gives a picture what it takes to its seat: its sampler's table, what its seed and its original give, and
what the UNet attends to."""

from __future__ import annotations

import dataclasses

from engines.backend import Stepper
from engines.model import Model
from engines.seat import Sitting
from pipeline.conditions.original import beginning
from pipeline.errors import CheckpointError, InvalidRequest
from server.device.contexts import Contexts
from server.device.fetching import Fetching
from server.job import Picture
from server.wish import Wish


class Seating:
    """Fills seats. Used by the device thread."""

    def __init__(self, model: Model, fetching: Fetching) -> None:
        self._spec, self._fetching = model.spec, fetching
        self._contexts = Contexts(model.backend)

    def unencoded(self, wish: Wish) -> int:
        """Count the chunks of a wish's prompts that would have to be encoded now. Called by any thread."""
        adds = None if wish.loras is None else wish.loras.text_key
        return sum(
            self._contexts.missing(prompt, adds) for prompt in (wish.prompt, wish.negative) if prompt is not None
        )

    def sit(self, stepper: Stepper, seat: int, picture: Picture) -> int:
        """Fill a seat; returns how many chunks had to be encoded. Errors: those of Backend.encode and Stepper.sit;
        InvalidRequest for LoRAs whose files are others by now.

        A picture that was paused goes on with what it had.
        """
        if picture.sitting is not None and picture.state is not None:
            resumed = dataclasses.replace(picture.sitting, start=picture.start, state=picture.state.get())
            stepper.sit(seat, resumed)
            picture.state = None
            return 0
        wish = picture.job.wish
        try:
            lora = self._fetching.take(picture)
        except CheckpointError as error:  # read once already, but not remembered any more, and its file replaced
            raise InvalidRequest(f"loras: {error}", "loras") from None
        texts, encoded = [], 0
        for prompt in (wish.prompt, wish.negative):
            if prompt is not None:
                text, chunks = self._contexts.of(prompt, lora)
                texts, encoded = [*texts, text], encoded + chunks
        sizes = wish.sizes.inputs(self._spec.unet, *wish.size)
        begun = beginning(self._spec, wish.table, wish.picture_seed(picture.index), wish.size, wish.start)
        picture.sitting = Sitting(
            wish.table,
            begun.noise,
            texts[0].context,
            texts[1].context if len(texts) == 2 else None,
            wish.guidance,
            beside=[text.beside | sizes for text in texts],
            x=begun.x,
            inpaint=begun.inpaint,
            interval=wish.interval,
            seen=begun.seen,
            style=wish.style,
            lora=lora,
        )
        stepper.sit(seat, picture.sitting)
        return encoded

    def pause(self, stepper: Stepper, seat: int, picture: Picture) -> None:
        """Empty a seat, and keep what its picture needs to go on. Errors: those of Stepper.pause."""
        picture.start = stepper.reached(seat)
        picture.state = stepper.pause(seat)
