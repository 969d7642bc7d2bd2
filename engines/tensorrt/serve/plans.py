"""Finds TensorRT's plans of one artifact in the store, and says which command builds those that are missing.

Plans are built ahead (`make engines`), never where they serve: a missing or damaged one is refused with the command.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engines.artifact.opened import Artifact
from engines.build.builder import Builder, Order
from engines.build.makers import GPU_ROWS
from engines.build.words import command
from engines.cache import store
from engines.errors import NoEngine

MOST_ROWS = 64  # of one plan
Size = tuple[int, int]


class Plans:
    """The plans that `builder` would build of `artifact`, as far as they have been built."""

    def __init__(self, artifact: Artifact, builder: Builder) -> None:
        self._artifact, self._builder = artifact, builder

    def shared_identity(self) -> dict[str, Any]:
        """Return the identity of the text encoder's plan; its precision, version and so on are those of all plans."""
        return self._builder.identity(self._order("text_encoder", self._any_size))

    def text_encoder(self) -> store.Engine:
        """Return the plan. Errors, here and below: NoEngine, naming what is missing and the command that builds it."""
        return self._required(self._order("text_encoder", self._any_size))

    def vae_decoder(self, size: Size) -> store.Engine:
        return self._required(self._order("vae_decoder", size))

    def unet(self, size: Size, chunks: int, rows: int) -> store.Engine:
        return self._required(self._order("unet", size, chunks, rows))

    def unet_rows(self, size: Size, chunks: int) -> list[int]:
        """Return the numbers of rows, rising, of the UNet's plans for `size` (width, height): at least one."""
        orders = {rows: self._order("unet", size, chunks, rows) for rows in range(1, MOST_ROWS + 1)}
        built = [rows for rows, order in orders.items() if store.place(self._builder.identity(order)).is_dir()]
        if not built:
            raise self._absent(list(orders.values()), orders[2], GPU_ROWS)
        return built

    def identities(self, size: Size, chunks: int = 1) -> dict[str, dict[str, Any]]:
        """Return all plans that pictures of `size` use: "text_encoder", "unet of 2 rows", .., "vae_decoder"."""
        unets = {f"unet of {n} rows": self._order("unet", size, chunks, n) for n in self.unet_rows(size, chunks)}
        orders = {"text_encoder": self._order("text_encoder", size), **unets}
        orders["vae_decoder"] = self._order("vae_decoder", size)
        return {name: self._builder.identity(order) for name, order in orders.items()}

    @property
    def _any_size(self) -> Size:
        default = self._artifact.spec.defaults
        return default.width, default.height

    def _order(self, network: str, size: Size, chunks: int = 1, rows: int = 1) -> Order:
        return next(o for o in self._builder.orders([rows], [size], chunks) if o.network == network)

    def _required(self, order: Order) -> store.Engine:
        identity = self._builder.identity(order)
        if not store.place(identity).is_dir():
            raise self._absent([order], order)
        return store.require(identity, command(self._artifact, identity))

    def _absent(self, orders: Sequence[Order], wanted: Order, rows: Sequence[int] = ()) -> NoEngine:
        """Return the error for `orders` that are all missing; it names `wanted` for them, in buckets of `rows` rows."""
        identity = self._builder.identity(wanted)
        mend = f"run `{command(self._artifact, identity, rows)}`"
        shapes = [self._builder.identity(order)["shapes"] for order in orders]
        alike = [
            manifest["identity"]
            for _, manifest in store.manifests()
            if manifest["identity"].get("shapes") in shapes
            and all(manifest["identity"].get(part) == identity[part] for part in ("artifact", "backend", "network"))
        ]
        absent, target = f"there is no plan of {_title(self._artifact, wanted, rows)}", identity["target"]
        targets = {each.get("target") for each in alike}
        if targets and target not in targets:
            listed = ", ".join(sorted(map(str, targets)))
            return NoEngine(f"{absent} for {target}, the GPU that is here: those in the cache are for {listed}; {mend}")
        for other in (each for each in alike if each.get("target") == target):
            parts = [part for part in identity if part != "shapes" and other.get(part) != identity[part]]
            why = ", ".join(_differs(part, other.get(part), identity[part]) for part in parts)
            return NoEngine(f"{absent} for {target} as asked: the one in the cache is another ({why}); {mend}")
        return NoEngine(f"{absent} for {target}, backend {self._builder.name}; {mend} to build it")


def _title(artifact: Artifact, order: Order, rows: Sequence[int]) -> str:
    """Name a missing plan: "unet for 2, 4 or 8 rows of 512x512 and 154 tokens"."""
    if order.network == "text_encoder":
        return order.network
    factor = artifact.spec.vae.factor
    latents = order.shapes["sample" if order.network == "unet" else "latents"]
    size = f"{latents[3] * factor}x{latents[2] * factor}"
    if order.network != "unet":
        return f"{order.network} for {size}"
    numbers = [str(number) for number in rows or latents[:1]]
    listed = " or ".join([", ".join(numbers[:-1]), numbers[-1]] if numbers[1:] else numbers)
    return f"unet for {listed} rows of {size} and {order.shapes['context'][1]} tokens"


def _differs(part: str, there: Any, here: Any) -> str:
    """Say how a part differs: versions and words are named, of hashes only that they differ."""
    if isinstance(there, str) and isinstance(here, str) and max(len(there), len(here)) < 24:
        return f"{part} {there}, here {here}"
    return f"{part} differ{'' if part.endswith('s') else 's'}"
