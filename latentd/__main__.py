"""`python -m latentd "a red apple" -o apple.png`: the command line.

Exit codes: 0 done, 1 a picture failed or a package is missing, 2 bad usage, 130 Ctrl-C, 141 the reader of stdout left.
"""

from __future__ import annotations

import os
import signal
import sys


def main(argv: list[str] | None = None) -> int:
    """Run the command line on `argv`, else on the program's own arguments; the exit code."""
    alone = argv is None  # this process is the command line: signals and stdout are ours to close down
    try:
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its C core logs what ServerError says in a sentence
        from latentd.command import run  # here, so that Ctrl-C during the imports is caught too

        code = run(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
        return code
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    except KeyboardInterrupt:
        if alone:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C has nothing left to stop
        print("interrupted", file=sys.stderr)
        return 130
    except ModuleNotFoundError as error:
        # Most often the system's Python in a clone whose `make demo` has filled .venv.
        lacks = f"latentd needs {error.name}, which {sys.executable} does not have"
        print(f"{lacks}: use .venv/bin/python in a clone, or pip install -e . there", file=sys.stderr)
        return 1
    except BrokenPipeError:
        if alone:
            # The reader of stdout has gone; what is still buffered must not raise again at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13  # as a process that SIGPIPE ended


if __name__ == "__main__":
    sys.exit(main())
