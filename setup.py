"""What the wheel carries: the client as `latentd`, and beside it, under `latentd/rooms/`, the folders that serve.

The folders import each other by their own names, `engines` and `server` and so on. Names so general must not lie in
anybody's site-packages, so the wheel keeps them one level down, and `latentd serve` alone puts that level on the path
(latentd/__main__.py). In a clone, and in an editable install of one, the folders stay where they are.
"""

from setuptools import find_packages, setup

ROOMS = ("pipeline", "graphs", "model", "kernels", "engines", "export", "server", "demo", "protos", "web")
INSIDE = "latentd.rooms"
# What of the embedded model serves: no record of the run that made it.
DEMO = ("ip_adapter", "judge", "scheduler", "text_encoder", "tokenizer", "unet", "vae")
OF_DEMO = ["*.json", "README.md", *(f"{part}/*" for part in DEMO)]

rooms = [package for room in ROOMS for package in (room, *(f"{room}.{below}" for below in find_packages(room)))]
setup(
    packages=["latentd", "latentd.v1", *(f"{INSIDE}.{package}" for package in rooms)],
    package_dir={f"{INSIDE}.{room}": room for room in ROOMS},
    package_data={
        "latentd": ["py.typed"],
        f"{INSIDE}.pipeline": ["*.gz"],
        f"{INSIDE}.graphs": ["*.onnx", "*.json", "*.md", "**/*.json"],
        f"{INSIDE}.demo": [f"small-things/{files}" for files in OF_DEMO],
        f"{INSIDE}.protos": ["**/*.proto"],
        f"{INSIDE}.web": ["**/*"],
    },
)
