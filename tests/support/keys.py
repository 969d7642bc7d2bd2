"""Keys for tests: a file of them, and the tokens that nobody else has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from server.access.key import digest_of, new_token

TOKENS: dict[str, str] = {}


def token(name: str) -> str:
    """The token of a name, the same each time."""
    return TOKENS.setdefault(name, new_token())


def entry(name: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "digest": f"sha256:{digest_of(token(name))}", **fields}


def write_keys(path: Path, *entries: dict[str, Any]) -> Path:
    """Write a file of keys beside its place, and put it there."""
    fresh = path.with_suffix(".new")
    fresh.write_text(yaml.safe_dump({"keys": list(entries)}))
    return fresh.replace(path)
