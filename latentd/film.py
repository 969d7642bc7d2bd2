"""Film: a picture forming, as an animated WebP."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

from PIL import Image

from latentd.events import Preview
from latentd.picture import Picture

FRAME_MS = 120
LAST_MS = 2000  # the finished picture is what people want to look at


class Film:
    """Keeps the previews of one picture, as the JPEG bytes they came in (some 40 KB each at 512x512)."""

    def __init__(self) -> None:
        self._jpegs: dict[int, bytes] = {}

    def add(self, preview: Preview) -> None:
        self._jpegs[preview.step] = preview.jpeg

    def webp(self, picture: Picture) -> bytes:
        """Write the previews in order of step, then the finished picture: frames of the picture's size, looping."""
        last = picture.image
        frames = [self._frame(self._jpegs[step], last.size) for step in sorted(self._jpegs)]
        file = BytesIO()
        first, *rest = [*frames, last]
        durations = [FRAME_MS] * len(frames) + [LAST_MS]
        first.save(file, "WEBP", save_all=True, append_images=rest, duration=durations, loop=0, quality=85, method=2)
        return file.getvalue()

    def save(self, picture: Picture, path: Path) -> None:
        path.write_bytes(self.webp(picture))

    @staticmethod
    def _frame(jpeg: bytes, size: tuple[int, int]) -> Image.Image:
        frame = Image.open(BytesIO(jpeg)).convert("RGB")
        return frame if frame.size == size else frame.resize(size)
