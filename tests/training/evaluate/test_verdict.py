"""What is right, what is nearly right, and what is not."""

from __future__ import annotations

import torch
from torch import Tensor

from training.evaluate.verdict import Wanted, psnr, verdict
from training.phases.classifier import Net

THINGS = tuple("abcdefgh")


class Fixed(Net):
    """A classifier that has made up its mind."""

    def __init__(self, things: list[list[float]], styles: list[list[float]]) -> None:
        super().__init__(8, 2)
        self._answers = torch.tensor(things), torch.tensor(styles)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        return self._answers


def test_ranks_styles_and_grounds() -> None:
    falling = [8.0, 7, 6, 5, 4, 3, 2, 1]  # a, b, c, ... in this order
    net = Fixed([falling] * 4, [[1.0, 0], [0, 1.0], [1.0, 0], [0, 1.0]])
    wanted = [
        Wanted(("a",), "color"),
        Wanted(("e",), "color", "black"),
        Wanted(("b", "a"), "ink"),
        Wanted(("a", "g"), "ink", "blue"),
    ]
    pictures = torch.stack([torch.ones(3, 8, 8), torch.full((3, 8, 8), -0.8), torch.ones(3, 8, 8), torch.ones(3, 8, 8)])
    pictures[3] = torch.tensor([140, 190, 250])[:, None, None] / 127.5 - 1
    pictures[3, :, 2:6, 2:6] = -1
    said = verdict(net, THINGS, ("color", "ink"), pictures, wanted)
    assert said.top1.tolist() == [True, False, True, False]
    assert said.top5.tolist() == [True, True, True, False]
    assert said.style.tolist() == [True, False, False, True]
    assert said.ground.tolist() == [True, True, True, True]
    assert said.mean()["top1"] == 0.5
    chances = torch.tensor(falling).softmax(dim=0)
    assert torch.allclose(
        said.sure, torch.stack([chances[0], chances[4], chances[0] + chances[1], chances[0] + chances[6]])
    )


def test_psnr_is_of_pixels_between_0_and_255() -> None:
    black = torch.full((2, 3, 4, 4), -1.0)
    off = black + torch.tensor([2 / 255, 20 / 255])[:, None, None, None]  # by 1 and by 10
    assert torch.allclose(psnr(black, off), torch.tensor([48.1308, 28.1308]), atol=1e-3)
