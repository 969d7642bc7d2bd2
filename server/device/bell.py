"""A condition that counts how often it was notified.

Its lock, and a look around under it, took a device thread 60 microseconds beside each step of 6 ms (AMD Zen 4), nearly
always for nothing. Who reads the count first and looks around then has missed nothing as long as the count is the same.
"""

from __future__ import annotations

import threading


class Bell(threading.Condition):
    """Wakes who waits, and counts the times for who does not."""

    def __init__(self) -> None:
        super().__init__()
        self.rings = 0

    def notify(self, n: int = 1) -> None:
        """Wake one who waits. Called with the lock held, which guards the count too."""
        self.rings += 1
        super().notify(n)
