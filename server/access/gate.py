"""What stands before all doors, as the settings have it: who may come, and TLS."""

from __future__ import annotations

import logging
from collections.abc import Callable

from server.access.certificates import Certificates
from server.access.keys import Keys
from server.access.policy import Policy
from server.address import is_loopback
from server.settings import Settings, SettingsError

log = logging.getLogger("latentd.access")


class Gate:
    """Holds the policy, and the certificates where there is TLS. `refused` counts refusals by their reason.

    Errors: SettingsError where others than this machine could come and nobody would ask who they are, and for settings
    that lack one another; KeyFileError; CertificateError.
    """

    def __init__(self, settings: Settings, refused: Callable[[str], object]) -> None:
        self._host = settings.host
        if settings.keys is None and not settings.insecure and not is_loopback(settings.host):
            raise SettingsError(
                f"host is {settings.host!r}, which others can reach, and keys is not set: give --keys FILE (latentd "
                "keys new NAME makes one), or --insecure on where something else keeps strangers away"
            )
        self.policy = Policy(settings.keys and Keys(settings.keys), refused)
        self.certificates = _certificates(settings)

    @property
    def stale(self) -> dict[str, Callable[[], bool]]:
        """Return what tells whether a changed file could not be read, for the keys and for the certificates."""
        watched = {"keys": self.policy.keys, "certificates": self.certificates}
        return {name: lambda each=each: each.stale for name, each in watched.items() if each is not None}

    def warn(self) -> None:
        """Log what others may do or read."""
        if is_loopback(self._host):
            return
        if self.policy.keys is None:
            log.warning("listening on %s without keys: anyone who reaches it may use it", self._host)
        elif self.certificates is None:
            log.warning("listening on %s without TLS: who is on the way can read keys and prompts", self._host)


def _certificates(settings: Settings) -> Certificates | None:
    files = {name: getattr(settings, name) for name in ("tls_cert", "tls_key", "tls_client_ca")}
    if not any(files.values()):
        return None
    for name in ("tls_cert", "tls_key"):
        if files[name] is None:
            raise SettingsError(f"{name} is not set; TLS takes both tls_cert and tls_key")
    return Certificates(files["tls_cert"], files["tls_key"], files["tls_client_ca"])


__all__ = ["Gate"]
