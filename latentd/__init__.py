"""The client of a latentd server: prompts in, pictures out.

    from latentd import Client

    with Client("127.0.0.1:8001") as client:
        for picture in client.generate("a red apple", steps=20, images=2):
            picture.save(f"apple-{picture.index}.png")

Everything is imported on first use, so that `import latentd` costs nothing and Ctrl-C is quiet from the start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from latentd.aio import AsyncClient
    from latentd.client import Client
    from latentd.errors import ServerError
    from latentd.picture import Picture, Timings

__version__ = "0.1.0"
__all__ = ["AsyncClient", "Client", "Picture", "ServerError", "Timings", "__version__"]

_HOMES = {
    "AsyncClient": "latentd.aio",
    "Client": "latentd.client",
    "Picture": "latentd.picture",
    "ServerError": "latentd.errors",
    "Timings": "latentd.picture",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'latentd' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
