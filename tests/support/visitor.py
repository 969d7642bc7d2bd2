"""How a client shows who it is: with a key, over TLS, with a certificate of its own, or not at all."""

from __future__ import annotations

import base64
import ssl
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPSConnection
from pathlib import Path

import grpc

from latentd.access import Access
from server.app import Server
from tests.support.patience import PATIENCE
from tests.support.serving import address


@dataclass(frozen=True)
class Visitor:
    key: str | None = None
    ca: Path | None = None  # None: no TLS
    certificate: tuple[Path, Path] | None = None  # and its key

    def access(self) -> Access:
        certificate, key = self.certificate or (None, None)
        return Access(key=self.key, tls_ca=self.ca, tls_client_cert=certificate, tls_client_key=key)

    def metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.key}"),) if self.key else ()

    def headers(self, *, basic: bool = False) -> dict[str, str]:
        """`basic`: as AUTOMATIC1111's clients do."""
        if not self.key:
            return {}
        if basic:
            return {"Authorization": f"Basic {base64.b64encode(f'anybody:{self.key}'.encode()).decode()}"}
        return {"Authorization": f"Bearer {self.key}"}

    def channel(self, server: Server) -> grpc.Channel:
        if self.ca is None:
            return grpc.insecure_channel(address(server))
        certificate, key = (path.read_bytes() for path in self.certificate) if self.certificate else (None, None)
        return grpc.secure_channel(
            address(server), grpc.ssl_channel_credentials(self.ca.read_bytes(), key, certificate)
        )

    def connection(self, port: int | None) -> HTTPConnection:
        if self.ca is None:
            return HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        context = ssl.create_default_context(cafile=str(self.ca))
        if self.certificate:
            context.load_cert_chain(*self.certificate)
        return HTTPSConnection("127.0.0.1", port, timeout=PATIENCE, context=context)


STRANGER = Visitor()
