"""python -m server: serve a model until SIGTERM."""

from __future__ import annotations

import os
import sys

# Nothing here forks and goes on in Python; without this gRPC logs a line at every subprocess.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")


def main(argv: list[str] | None = None) -> int:
    try:
        import asyncio

        from engines.backend import DeviceError
        from pipeline.errors import LatentdError
        from server.app import serve
        from server.logs import start_logging
        from server.settings import read_settings
    except ModuleNotFoundError as error:
        print(
            f"the server needs {error.name}, which is not installed: pip install -e '.[cpu]' in a clone of latentd",
            file=sys.stderr,
        )
        return 1
    try:
        settings = read_settings(sys.argv[1:] if argv is None else argv)
        start_logging(settings.log_format)
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
