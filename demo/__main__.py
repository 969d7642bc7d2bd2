"""python -m demo: start a server, ask it for pictures as a client would, lay them out, stop it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
OUT = Path(__file__).parent / "out"
PROMPTS = [
    "red apple, color style",
    "fox, ink style",
    "rainbow, color style",
    "castle, ink style",
    "crab, color style",
    "penguin, ink style",
    "hamburger, color style",
    "sailboat, ink style",
]
SEED = 7


def main() -> int:
    environment = dict(os.environ, PYTHONUNBUFFERED="1")
    for name in [name for name in environment if name.startswith("LATENTD_") and name != "LATENTD_CACHE"]:
        del environment[name]  # the demo is the same on every machine
    start = time.monotonic()
    command = [sys.executable, "-m", "server", "--http-port", "off", "--grpc-port", "0", "--metrics-port", "0"]
    OUT.mkdir(exist_ok=True)
    with (
        (OUT / "server.log").open("wb") as log,
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=log, text=True) as server,
    ):
        try:
            assert server.stdout
            greeting = server.stdout.readline()
            if "gRPC " not in greeting:
                server.wait()
                print((OUT / "server.log").read_text(), file=sys.stderr)
                print("the server did not start; its log is above", file=sys.stderr)
                return 1
            address = greeting.split("gRPC ")[1].split(",")[0]
            print(f"server ready after {time.monotonic() - start:.1f} s at {address}", flush=True)
            asyncio.run(_draw(address))
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait()
    return 0


async def _draw(address: str) -> None:
    """Draw all prompts at once: they share every step of the server."""
    from latentd import AsyncClient

    start = time.monotonic()
    client = AsyncClient(address)
    try:
        answers = await asyncio.gather(*(client.generate(prompt, seed=SEED) for prompt in PROMPTS))
    finally:
        await client.close()
    took = time.monotonic() - start
    pictures = [answer[0] for answer in answers]
    for prompt, picture in zip(PROMPTS, pictures, strict=True):
        path = picture.save(OUT / (prompt.replace(",", "").replace(" ", "-") + ".png"))
        t = picture.timings
        assert t is not None
        print(
            f"  {_shown(path)}: queue {t.queue_ms:.0f}, encode {t.encode_ms:.0f}, denoise {t.denoise_ms:.0f} "
            f"({t.seats_shared:.1f} seats shared), decode wait {t.decode_wait_ms:.0f}, decode {t.decode_ms:.0f}, "
            f"file {t.file_ms:.0f}, delivery {t.delivery_ms:.0f} ms"
        )
    print(f"{len(pictures)} pictures in {took:.2f} s, {len(pictures) / took:.1f} a second")
    print(f"contact sheet: {_shown(_sheet([picture.image for picture in pictures]))}")
    print("to draw your own: make serve, and open http://localhost:8000")


def _sheet(images: list) -> Path:
    """Lay out two rows of four, three times enlarged, each with its prompt below."""
    from PIL import Image, ImageDraw, ImageFont

    side, border, caption = 3 * images[0].width, 12, 26
    columns = len(images) // 2
    sheet = Image.new("RGB", (columns * (side + border) + border, 2 * (side + caption + border) + border), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for place, (image, prompt) in enumerate(zip(images, PROMPTS, strict=True)):
        x = border + place % columns * (side + border)
        y = border + place // columns * (side + caption + border)
        sheet.paste(image.convert("RGB").resize((side, side), Image.Resampling.LANCZOS), (x, y))
        draw.text((x + side / 2, y + side + caption / 2), prompt, fill=(60, 60, 60), font=font, anchor="mm")
    path = OUT / "contact-sheet.png"
    sheet.save(path)
    return path


def _shown(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
