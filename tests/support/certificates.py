"""Certificates for tests, made here: an authority, and what it signs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID


class Signed(NamedTuple):
    """A certificate and its key, in PEM."""

    certificate: bytes
    key: bytes


class Authority:
    """Signs certificates. Whoever trusts `pem` trusts them."""

    def __init__(self, name: str = "authority", above: Authority | None = None) -> None:
        """`above`: who signs its own certificate; None: itself."""
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _named(name)
        self.pem = (above or self)._signed(self._name, self._key.public_key(), authority=True)

    def below(self, name: str) -> Authority:
        """An authority whose certificate this one has signed."""
        return Authority(name, self)

    def sign(self, name: str = "localhost") -> Signed:
        """A new certificate for `name`, 127.0.0.1 and ::1, and its new key."""
        key = ec.generate_private_key(ec.SECP256R1())
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return Signed(self._signed(_named(name), key.public_key(), name), pem)

    def _signed(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey, host: str | None = None, *, authority: bool = False
    ) -> bytes:
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder(self._name, subject, key, x509.random_serial_number())
        builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
        builder = builder.add_extension(x509.BasicConstraints(authority, None), critical=True)
        if host is not None:
            names = [x509.DNSName(host), *(x509.IPAddress(ip_address(each)) for each in ("127.0.0.1", "::1"))]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM)


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def put(folder: Path, name: str, signed: Signed) -> tuple[Path, Path]:
    """Write a pair as `name`.crt and `name`.key, each in one go; returns where they are."""
    paths = folder / f"{name}.crt", folder / f"{name}.key"
    for path, data in zip(paths, signed, strict=True):
        fresh = path.with_suffix(".new")
        fresh.write_bytes(data)
        fresh.replace(path)
    return paths
