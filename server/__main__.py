"""python -m server: serve a model until SIGTERM."""

from __future__ import annotations

import os
import sys

from pipeline.extras import install

# Nothing here forks and goes on in Python; without this gRPC logs a line at every subprocess.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
os.environ.setdefault(
    "GRPC_VERBOSITY", "NONE"
)  # its C core logs each handshake that fails, which any stranger can cause


def main(argv: list[str] | None = None, prog: str = "python -m server") -> int:
    """Serve as `argv` says, else the process's arguments; returns the exit status. `prog`: what the user called it."""
    try:
        import asyncio
        import logging

        from engines.errors import DeviceError
        from latentd.variables import strangers
        from pipeline.errors import LatentdError
        from server.app import serve
        from server.logs import start_logging
        from server.settings import read_settings
    except ModuleNotFoundError as error:
        print(f"the server needs {error.name}, which is not installed: {install('cpu')}", file=sys.stderr)
        return 1
    try:
        settings = read_settings(sys.argv[1:] if argv is None else argv, os.environ, prog)
        start_logging(settings.log_format)
        for sentence in strangers(os.environ):
            logging.getLogger("latentd.server").warning("%s", sentence)
        return asyncio.run(serve(settings))
    except LatentdError as error:
        print(f"latentd: {error}", file=sys.stderr, flush=True)
        if isinstance(error, DeviceError):
            os._exit(1)  # at once, as when it fails later: what torch frees on the way out could abort
        return 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
