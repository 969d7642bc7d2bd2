"""TLS at the gRPC port, whose certificates may change while it listens."""

from __future__ import annotations

import grpc

from server.access.certificates import Certificates, Pair


def server_credentials(certificates: Certificates) -> grpc.ServerCredentials:
    """Return gRPC's credentials, which ask for the newest pair at each handshake, in a thread of gRPC's."""
    served = certificates.current()

    def newest() -> grpc.ServerCertificateConfiguration | None:
        nonlocal served
        pair = certificates.current()
        if pair is served:
            return None  # go on with what there is
        served = pair
        return _configuration(pair)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(served),
        newest,  # pyright: ignore[reportArgumentType] - None is in gRPC's documentation, not in its types
        require_client_authentication=certificates.mutual,
    )


def _configuration(pair: Pair) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(pair.key, pair.certificate)], pair.client_ca)


__all__ = ["server_credentials"]
