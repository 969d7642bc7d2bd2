"""How a client shows who it is, and whom it takes a server for: a key, and TLS. The same for both clients."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple, TypedDict

import grpc

Metadata = tuple[tuple[str, str], ...]


class Access(TypedDict, total=False):
    """Says how a client is let in; what is not said is read from $LATENTD_KEY, $LATENTD_TLS_CA and so on.

    key              a key's token, or @ and the path of a file that has it
    tls              encrypt, and take a server whose certificate a public authority signed; False: do not, whatever
                     else is said
    tls_ca           the same, but signed by an authority in this file, in PEM
    tls_client_cert  the file of this client's certificate, in PEM, where the server wants one
    tls_client_key   and of its key
    """

    key: str | None
    tls: bool | None
    tls_ca: str | os.PathLike[str] | None
    tls_client_cert: str | os.PathLike[str] | None
    tls_client_key: str | os.PathLike[str] | None


class Shown(NamedTuple):
    """Holds what is shown to a server: TLS's part, None without TLS, and what each call carries."""

    channel: grpc.ChannelCredentials | None
    metadata: Metadata


def shown(access: Access) -> Shown:
    """Read what a client shows. Raises ValueError for a file that cannot be read, and for a key that is none."""
    key = access.get("key") or os.environ.get("LATENTD_KEY")
    files = {
        name: access.get(name) or os.environ.get(f"LATENTD_{name.upper()}")
        for name in ("tls_ca", "tls_client_cert", "tls_client_key")
    }
    ca, certificate, private = (_read(name, path) for name, path in files.items())
    if (certificate is None) != (private is None):
        lacks = "tls_client_cert" if certificate is None else "tls_client_key"
        raise ValueError(f"{lacks} is missing: a client's certificate takes tls_client_cert and tls_client_key")
    tls = access.get("tls")
    if tls is None and (said := os.environ.get("LATENTD_TLS")):
        tls = said.lower() in ("1", "true", "yes", "on")
    if tls is None:
        tls = bool(ca or certificate)
    channel = grpc.ssl_channel_credentials(ca, private, certificate) if tls else None
    return Shown(channel, (("authorization", f"Bearer {_token(key)}"),) if key else ())


def _token(key: str) -> str:
    if key.startswith("@"):
        key = (_read("key", key[1:]) or b"").decode("latin-1").strip()
    if not re.fullmatch(r"[!-~]+", key):
        raise ValueError("key is no key: it has spaces, line breaks, or letters that none has")
    return key


def _read(name: str, path: str | os.PathLike[str] | None) -> bytes | None:
    if not path:
        return None
    try:
        return Path(path).expanduser().read_bytes()
    except OSError as error:
        raise ValueError(f"{name}: cannot read {path}: {error.strerror}") from None


__all__ = ["Access", "Metadata", "Shown", "shown"]
