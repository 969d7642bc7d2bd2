"""Certificates for TLS, read anew when their files change; a pair that does not fit together changes nothing."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import LatentdError
from server.access.watched import Watched, contents

_MOST = 1 << 20  # bytes of a file


class CertificateError(LatentdError):
    """Certificates cannot be used; the message names the setting, the file and what is amiss."""

    code = "INVALID_ARGUMENT"


@dataclass(frozen=True)
class Pair:
    """Holds a certificate, its key and who signs clients' certificates, as bytes in PEM, and TLS made of them."""

    certificate: bytes
    key: bytes
    client_ca: bytes | None
    context: ssl.SSLContext


class Certificates:
    """Holds what the files say. With `client_ca`, who comes without a certificate of that authority is turned away.

    The files are looked at for each handshake, so that a renewed certificate counts for the next one. Threads may share
    it. Errors: CertificateError, of the constructor alone.
    """

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None = None) -> None:
        self._paths = {"tls_cert": certificate, "tls_key": key}
        if client_ca is not None:
            self._paths["tls_client_ca"] = client_ca
        self._watched = Watched(list(self._paths.values()), self._read, "certificates")
        pair = self.current()
        self.context = _context(pair.certificate, pair.key, pair.client_ca)
        self.context.sni_callback = self._newest  # called whether a client names the server or not

    @property
    def mutual(self) -> bool:
        """Return whether clients need certificates."""
        return "tls_client_ca" in self._paths

    @property
    def stale(self) -> bool:
        """Return whether the files have changed and could not be read, so that the pair before is still shown."""
        return self._watched.stale

    def current(self) -> Pair:
        """Return the pair that counts now."""
        return self._watched.current()

    def _newest(self, connection: ssl.SSLObject | ssl.SSLSocket, name: str | None, listening: ssl.SSLContext) -> None:
        """Have a handshake go on with the newest pair. A listener keeps its context for good."""
        connection.context = self.current().context

    def _read(self) -> Pair:
        files = {setting: _bytes(setting, path) for setting, path in self._paths.items()}
        parts = files["tls_cert"], files["tls_key"], files.get("tls_client_ca")
        try:
            return Pair(*parts, _context(*parts))
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError, as the want of descriptors is
            where = " and ".join(str(path) for path in self._paths.values())
            raise CertificateError(
                f"tls_cert and tls_key: {where} are no certificate in PEM with its key, unencrypted"
                f"{' and an authority' if self.mutual else ''}: {_reason(error)}"
            ) from None


def _bytes(setting: str, path: Path) -> bytes:
    try:
        return contents(path, _MOST)
    except ValueError as error:
        raise CertificateError(f"{setting}: {path} {error}") from None


def _context(certificate: bytes, key: bytes, client_ca: bytes | None) -> ssl.SSLContext:
    """Make TLS 1.2 and later of a pair; 1.3 where clients bring certificates. Errors: ssl.SSLError; ValueError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    # Python reads a pair from files alone. These are in memory, so that both doors serve the bytes that were checked.
    with _file(certificate) as one, _file(key) as other:
        context.load_cert_chain(one, other, password=lambda: "")  # without it an encrypted key asks at the terminal
    if client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        # Who resumes a session is not asked for a certificate again, and would outlive its authority. Of TLS 1.2
        # Python cannot leave them out.
        context.minimum_version, context.num_tickets = ssl.TLSVersion.TLSv1_3, 0
        with _file(client_ca) as authorities:  # as text they would have to be ASCII, which bundles' comments are not
            context.load_verify_locations(authorities)
    return context


@contextmanager
def _file(data: bytes) -> Iterator[str]:
    number = os.memfd_create("latentd-tls", os.MFD_CLOEXEC)
    try:
        with open(number, "wb", closefd=False) as file:
            file.write(data)
        yield f"/proc/self/fd/{number}"
    finally:
        os.close(number)


def _reason(error: Exception) -> str:
    """Say what OpenSSL says, where it says anything: of damaged PEM it says nothing."""
    reason = getattr(error, "reason", None) or "they cannot be read"
    return str(reason).lower().replace("_", " ")


__all__ = ["CertificateError", "Certificates", "Pair"]
