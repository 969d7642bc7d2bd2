"""How long builds may still take, from what earlier ones took on this machine."""

from __future__ import annotations

from engines.artifact.opened import GRAPHS, Artifact
from engines.build.builder import Builder, Order
from engines.build.words import span
from engines.cache import devices


class Clock:
    """Estimates of build times, as seconds a byte of weights: coarse, but of the same compiler on the same machine."""

    def __init__(self, artifact: Artifact, builder: Builder) -> None:
        self._bytes = {network: artifact.weight_bytes(network) for network in GRAPHS}
        self._what = {"what": "seconds a byte", "backend": builder.name, "target": builder.target}
        self._device = devices.this_cpu()
        recalled = {network: devices.recall(self._device, {**self._what, "network": network}) for network in GRAPHS}
        self._rates = {network: float(rate) for network, rate in recalled.items() if rate}

    def took(self, order: Order, seconds: float) -> None:
        rate = seconds / max(1, self._bytes[order.network])
        self._rates[order.network] = rate
        devices.remember(self._device, {**self._what, "network": order.network}, rate)

    def left(self, orders: list[Order]) -> str:
        seconds = [self.seconds(order) for order in orders]
        if not orders or None in seconds:
            return ""
        return f"; about {span(sum(filter(None, seconds)))} left"

    def expected(self, order: Order) -> str:
        seconds = self.seconds(order)
        return f" of about {span(seconds)}" if seconds else ""

    def seconds(self, order: Order) -> float | None:
        """Return the seconds that a build is expected to take; None while nothing is known."""
        if not self._rates:
            return None
        rate = self._rates.get(order.network) or sum(self._rates.values()) / len(self._rates)
        return rate * self._bytes[order.network]
