"""A plan's buffers are torch's: shapes, types and addresses, with a double of the engine; no GPU."""

from __future__ import annotations

from typing import Any

import torch

from engines.tensorrt.serve.plan import Plan


class Engine:
    workspace = 1000

    def __init__(self) -> None:
        self.inputs = [{"name": "x", "dtype": "HALF", "shape": [2, 3]}, {"name": "t", "dtype": "FLOAT", "shape": [2]}]
        self.outputs = [{"name": "out", "dtype": "BF16", "shape": [2, 3]}]
        self.bound: dict[str, int] = {}
        self.lent: tuple[int, int] = (0, 0)

    def bind(self, name: str, address: int) -> None:
        self.bound[name] = address

    def lend(self, address: int, size: int) -> None:
        self.lent = address, size


def test_buffers() -> None:
    engine: Any = Engine()
    plan = Plan(engine, "cpu")
    assert {name: (t.dtype, tuple(t.shape)) for name, t in plan.inputs.items()} == {
        "x": (torch.float16, (2, 3)),
        "t": (torch.float32, (2,)),
    }
    assert plan.outputs["out"].dtype == torch.bfloat16
    assert engine.bound == {name: t.data_ptr() for name, t in (plan.inputs | plan.outputs).items()}
    assert engine.lent[0] and engine.lent[1] == 1000
