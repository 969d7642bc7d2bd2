"""How long a test waits for what should come."""

from __future__ import annotations

PATIENCE = 30.0  # seconds until a test that would hang fails
