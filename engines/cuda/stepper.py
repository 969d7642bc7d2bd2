"""The CUDA stepper: the seats of one lane on the device, and one evaluation over whoever sits, captured.

A bucket's evaluation is one CUDA graph: gather -> UNet -> guide and update -> step index. It reads and writes fixed
buffers, so n evaluations are n replays: nothing is read back, and the host, which counts along, computes nothing
in between. What a step would repeat is done when a picture sits down: keys and values of its text, its table's time
embeddings, its noise. Over CPU tensors the same evaluation runs uncaptured, and is what the tests compare.

A guided seat's two rows are twins: equal until the UNet first attends to the text. Where all who step are guided, and
the network has that form, a graph is replayed that computes them once until then.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from engines.backend import Pending
from engines.cuda.kernels import Kernels
from engines.cuda.network import Network
from engines.cuda.seats import Seats, empty_seats
from engines.cuda.stream import Mark, OnDevice, Stream
from engines.seat import Sitting
from pipeline.arrays import F32
from pipeline.samplers import Table

_AHEAD = 1  # replays that may be under way when another is begun

log = logging.getLogger("latentd.cuda")


class _Key(NamedTuple):
    """The name of a captured evaluation: whose it is, and in which form."""

    seat: int  # whose it is; 0 where rows are packed
    rows: int
    twins: bool  # of rows 2k and 2k + 1 of one seat, for every k


@dataclass(frozen=True)
class _Bucket:
    """R rows that are evaluated together, and the seats that they may belong to."""

    seats: Seats
    seat: Tensor  # int32 [R]: whose each row is, counted in `seats`
    place: Tensor  # int32 [R]: where that seat's table begins, in rows of `scales` and `times`
    texts: Tensor  # [R, text width]
    twins: bool


def evaluate(network: Network, kernels: Kernels, bucket: _Bucket) -> None:
    """Evaluate a bucket once: all that a graph holds. Fixed shapes, no branch on a value, nothing read back."""
    seats, each = bucket.seats, slice(None, None, 2 if bucket.twins else 1)
    place = bucket.place + seats.step.index_select(0, bucket.seat)  # [R]
    x = seats.state[:, 0].index_select(0, bucket.seat[each])  # [R, C, h, w], of twins half of them
    scale = seats.scales.flatten().index_select(0, place[each])[:, None, None, None]
    rows, channels, *sides = x.shape
    samples = torch.empty(
        (rows, channels + network.seen, *sides),
        dtype=network.sample_dtype,
        device=x.device,
        memory_format=torch.channels_last,
    )
    torch.mul(x, scale, out=samples[:, :channels])
    if network.seen:
        samples[:, channels:] = seats.seen.index_select(0, bucket.seat[each])
    times = seats.times.flatten(0, 1).index_select(0, place)  # [R, time width]
    outputs = network.denoise(samples, times, bucket.texts)  # [R, C, h, w]
    kernels.guided_step(seats, outputs)
    seats.step.copy_(seats.step_next)


class CudaStepper:
    """Seats 0..seats-1 for latents of `shape`. See engines.backend.Stepper.

    `exact`: each seat's rows are a bucket of their own, so its bits cannot depend on its company. Otherwise the rows
    of all who step are packed into the smallest bucket that holds them: of twins where all of them are guided.
    """

    def __init__(
        self,
        network: Network,
        kernels: Kernels,
        shape: tuple[int, int, int],
        seats: int,
        steps: int,
        stream: Stream,
        side: Stream,
        *,
        exact: bool,
    ) -> None:
        """Capture the lane. All steps of the device run on `stream`, one after another; `side` fetches beside them."""
        self.seats, self._exact = seats, exact
        self._network, self._kernels = network, kernels
        self._stream, self._side = stream, side
        self._marks: deque[Mark] = deque()
        self._tables: list[Table | None] = [None] * seats
        self._rows = [[1]] * seats  # of each evaluation of the tenant's table
        self._laid = [0] * seats  # `exact`: of a seat, the rows that its buffers are laid out for; 0: none yet
        self._reached = [0] * seats
        self._arranged: tuple[tuple[int, int], ...] = ()  # the seats that are packed, and how many rows of each,
        self._live = _Key(0, 0, twins=False)  # and the bucket that holds them
        time, text = (network.time_width, network.time_dtype), (network.text_width, network.text_dtype)
        together = 1 if exact else seats
        with stream.here():
            self._groups = [
                empty_seats(shape, together, steps, time, text, stream.device, network.seen)
                for _ in range(seats // together)
            ]
            buckets = self._one_a_seat() if exact else self._packed()
            self._replays = self._captured(buckets)

    def sit(self, seat: int, sitting: Sitting) -> None:
        """See Stepper.sit. Everything is copied before this returns, and written between two steps."""
        table, (group, index), upload = sitting.table, self._at(seat), self._stream.upload
        run, inpaint = table.evaluations, sitting.inpaint
        assert run <= group.matrices.shape[1], f"{run} evaluations in seats for {group.matrices.shape[1]}"
        with self._stream.here():
            if sitting.state is None:
                upload(group.state[index, 0], sitting.latents)
                group.state[index, 1:].zero_()  # the history of the last tenant
            else:
                upload(group.state[index], sitting.state)
            upload(group.matrices[index, :run], table.matrices.astype(np.float32))
            upload(group.draw[index, :run], table.noise.astype(np.int32))
            if table.draws:
                upload(group.noise[index, : table.draws], sitting.noise[1:])
            upload(group.scales[index, :run], table.input_scales.astype(np.float32))
            timesteps = self._stream.new(table.timesteps.astype(np.float32))
            group.times[index, :run] = self._network.time(timesteps, torch.full_like(timesteps, sitting.guidance))
            new, style, lora = self._stream.new, sitting.style, sitting.lora
            assert lora is None or all(m.dtype == np.float32 for m in lora.unet.values()), "a LoRA of another type"
            added = () if lora is None else ({name: new(matrix) for name, matrix in lora.unet.items()},)
            for sign, text in enumerate(sitting.texts):
                seen = None if style is None else (new(style.row(sign)), style.weight)
                beside = {name: new(value) for name, value in sitting.beside[sign].items()}
                group.texts[index, sign] = self._network.text(new(text), seen, beside, *added)
            if sitting.seen is not None:
                upload(group.seen[index], sitting.seen)
            group.masked[index].fill_(inpaint is not None)
            if inpaint is not None:
                upload(group.mask[index], inpaint.mask)
                upload(group.original[index], inpaint.original)
                upload(group.first_noise[index], sitting.noise[0])
                upload(group.blend[index, :run], table.levels[1:].astype(np.float32))
            group.guidance[index].fill_(sitting.guidance)
            group.step[index].fill_(sitting.start)
            group.last[index].fill_(run)
        self._tables[seat], self._reached[seat] = table, sitting.start
        self._rows[seat] = [sitting.rows(evaluation) for evaluation in range(run)]
        self._laid[seat], self._arranged = 0, ()  # the rows' texts have changed

    def leave(self, seat: int) -> None:
        self._tables[seat] = None

    def pause(self, seat: int) -> Pending[F32]:
        """See Stepper. The copy is made after the steps that are under way, and leaves the device beside the next."""
        group, index = self._at(seat)
        state = self._copied(group.state[index]).fetched()
        self.leave(seat)
        return state

    def rows(self, seat: int) -> int:
        """Return how many UNet rows the coming evaluation of the seat's tenant takes: two where it is guided."""
        return self._rows[seat][self._reached[seat]]

    def step(self, seats: Sequence[int], predict: Collection[int] = ()) -> None:
        """See Stepper.step. x0 is kept at every step, whatever `predict` has: the update has it in registers."""
        for seat in seats:
            assert self._reached[seat] < self._table(seat).evaluations, f"seat {seat} is finished"
        if not seats:
            return
        ordered = tuple(sorted(seats))
        while len(self._marks) > _AHEAD:
            self._marks.popleft().wait()
        with self._stream.here():
            for replay in self._due(ordered):
                replay()
            self._marks.append(self._stream.mark())
        for seat in seats:
            self._reached[seat] += 1

    def reached(self, seat: int) -> int:
        return self._reached[seat]

    def finished(self, seat: int) -> bool:
        return self._reached[seat] == self._table(seat).evaluations

    def pending_latents(self, seat: int) -> OnDevice:
        """See Stepper. The copy is made between two steps of the stream, so whoever sits next cannot be in it."""
        group, index = self._at(seat)
        return self._copied(group.state[index, 0])

    def pending_prediction(self, seat: int) -> Pending[F32]:
        """See Stepper. It leaves the device on a stream of its own, beside the next step."""
        group, index = self._at(seat)
        return self._copied(group.predictions[index]).fetched()

    def latents(self, seat: int) -> F32:
        return self.pending_latents(seat).get()

    def prediction(self, seat: int) -> F32:
        return self.pending_prediction(seat).get()

    def _copied(self, tensor: Tensor) -> OnDevice:
        with self._stream.here():
            return OnDevice(tensor.clone(), self._stream.mark(), self._side)

    def _due(self, seats: tuple[int, ...]) -> list[Callable[[], None]]:
        """Return the replays that step these seats; first write where their rows are, if that has changed."""
        places = tuple((seat, self.rows(seat)) for seat in seats)
        if self._exact:
            for seat, rows in places:
                if rows != self._laid[seat]:
                    self._stream.upload(self._groups[seat].row[0], np.array([0, 1 if rows == 2 else -1], np.int32))
                    self._laid[seat] = rows
            return [self._replays[self._key(seat, rows)] for seat, rows in places]
        if places != self._arranged:
            self._live = self._arrange(seats)
            self._arranged = places
        return [self._replays[self._live]]

    def _arrange(self, seats: tuple[int, ...]) -> _Key:
        """Give each of these seats its rows, one after the other, and all others none; return the bucket's key."""
        most, (everyone,) = 2 * self.seats, self._groups
        row = np.full((self.seats, 2), -1, np.int32)
        # A bucket may be larger than the rows that are used. The rest computes the first seat's row again, for nobody.
        seat, text = np.zeros(most, np.int32), np.zeros(most, np.int32)
        used = 0
        for tenant in seats:
            for sign in range(self.rows(tenant)):
                row[tenant, sign], seat[used], text[used] = used, tenant, 2 * tenant + sign
                used += 1
        size = min(key.rows for key in self._replays if key.rows >= used)
        live = _Key(0, size, twins=used == 2 * len(seats))  # the rest of such a bucket is in pairs too
        stride = everyone.scales.shape[1]
        self._stream.upload(self._layout, np.concatenate([seat, seat * stride, text, row.ravel()]))
        everyone.row.copy_(self._layout[3 * most :].view(self.seats, 2))
        # Copied when rows move and not gathered in every step: 3.8 MB a row of SD 1.5.
        chosen = self._layout[2 * most : 2 * most + size]
        torch.index_select(everyone.texts.flatten(0, 1), 0, chosen, out=self._row_texts[:size])
        return live if live in self._replays else _Key(0, size, twins=False)

    def _captured(self, buckets: dict[_Key, _Bucket]) -> dict[_Key, Callable[[], None]]:
        """Capture the buckets, the largest first, as Stream.captured wants it; `exact`: each seat's two rows, then one.

        Each is logged, so that whoever waits sees it move: the first one compiles kernels, and with `fast` each has its
        convolutions measured.
        """
        replays, network, kernels = {}, self._network, self._kernels
        for number, key in enumerate(sorted(buckets, key=lambda key: (-key.rows, key.twins)), 1):
            begin, bucket = time.monotonic(), buckets[key]
            replays[key] = self._stream.captured(lambda bucket=bucket: evaluate(network, kernels, bucket))
            took = time.monotonic() - begin
            what = f"rows={key.rows}{', twins' if key.twins else ''}"
            log.info("captured bucket %d of %d (%s) in %.1f s", number, len(buckets), what, took)
        return replays

    def _packed(self) -> dict[_Key, _Bucket]:
        """Return a bucket of the first n rows for every n of the network's buckets, and of twins for every even n."""
        most, (everyone,) = 2 * self.seats, self._groups
        self._layout = torch.zeros(3 * most + 2 * self.seats, dtype=torch.int32, device=self._stream.device)
        self._row_texts = torch.zeros_like(everyone.texts.flatten(0, 1))
        seat, place, texts = self._layout[:most], self._layout[most : 2 * most], self._row_texts
        keys = [_Key(0, n, twins=False) for n in self._network.buckets(most)]
        keys += [key._replace(twins=True) for key in keys if self._network.twins and key.rows % 2 == 0]
        return {key: _Bucket(everyone, *(x[: key.rows] for x in (seat, place, texts)), twins=key.twins) for key in keys}

    def _one_a_seat(self) -> dict[_Key, _Bucket]:
        """Return two buckets for every seat: of its two rows and of its one row."""
        zeros = torch.zeros(2, dtype=torch.int32, device=self._stream.device)
        numbered = [(self._key(seat, n), group, n) for seat, group in enumerate(self._groups) for n in (2, 1)]
        return {key: _Bucket(group, zeros[:n], zeros[:n], group.texts[0, :n], key.twins) for key, group, n in numbered}

    def _key(self, seat: int, rows: int) -> _Key:
        """Return the key of a seat's bucket in `exact`, where a seat is always evaluated in the same form."""
        return _Key(seat, rows, self._network.twins and rows == 2)

    def _at(self, seat: int) -> tuple[Seats, int]:
        """Return where a seat is: its group of buffers, and its index in the group."""
        return (self._groups[seat], 0) if self._exact else (self._groups[0], seat)

    def _table(self, seat: int) -> Table:
        table = self._tables[seat]
        assert table is not None, f"seat {seat} is empty"
        return table
