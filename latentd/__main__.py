"""`python -m latentd "a red apple" -o apple.png`: the command line. `latentd serve [MODEL]`: the server.

`latentd keys new NAME` draws a key for a server, `latentd swap NAME` has one serve another model.

Exit codes: 0 done, 1 a picture failed or a package is missing, 2 bad usage, 130 Ctrl-C, 141 the reader of stdout left.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path


def main(argv: list[str] | None = None) -> int:
    """Run the command line on `argv`, else on the program's own arguments; returns the exit code."""
    alone = argv is None  # this process is the command line: signals and stdout are ours to close down
    words = sys.argv[1:] if argv is None else argv
    try:
        if words[:1] == ["serve"]:  # the prompt "serve" is `latentd -- serve`
            return _serve(words[1:])
        if words[:1] == ["keys"]:
            return _keys(words[1:])
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its C core logs what ServerError says in a sentence
        if words[:1] == ["swap"]:
            from latentd.swap import run as swap

            return swap(words[1:], f"{_program()} swap")
        from latentd.command import run  # here, so that Ctrl-C during the imports is caught too

        code = run(words)
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
        lacks, root = f"latentd needs {error.name}, which {sys.executable} does not have", Path(__file__).parents[1]
        here = root / ".venv" / "bin" / "python"
        clone = (root / "pyproject.toml").is_file()
        mend = f"{sys.executable} -m pip install {f'-e {root}' if clone else error.name}"
        print(f"{lacks}: {f'use {here}, or ' if here.is_file() else ''}{mend}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        if alone:
            # The reader of stdout has gone; what is still buffered must not raise again at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13  # as a process that SIGPIPE ended


def _serve(argv: list[str]) -> int:
    """Run the server that this package came with; nothing of it is imported for anything else."""
    if not _has_server("serve"):
        return 1
    from server.__main__ import main as serve

    return serve(argv, f"{_program()} serve")


def _keys(argv: list[str]) -> int:
    """Run the command that draws keys, which are the server's."""
    if not _has_server("keys"):
        return 1
    from server.access.command import main as keys

    return keys(argv, f"{_program()} keys")


def _has_server(word: str) -> bool:
    """Return whether the server came with this package, and make it importable; stderr says if not."""
    here = Path(__file__).resolve().parent
    rooms = here / "rooms", here.parent  # as a wheel has them (setup.py), and as a clone
    folder = next((each for each in rooms if (each / "server" / "__main__.py").is_file()), None)
    if folder is None:
        print(
            f"latentd {word} needs the server, and only the client is installed: install latentd's wheel or a clone "
            "with the extra cpu (pip install 'latentd-VERSION-py3-none-any.whl[cpu]')",
            file=sys.stderr,
        )
        return False
    sys.path.insert(0, str(folder))  # first: `server` is a common name
    return True


def _program() -> str:
    return "latentd" if Path(sys.argv[0]).name == "latentd" else "python -m latentd"


if __name__ == "__main__":
    sys.exit(main())
