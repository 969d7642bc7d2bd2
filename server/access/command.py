"""`latentd keys new NAME`: draw a key. Its token is printed once and kept nowhere."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from server.access.key import KeyFileError, digest_of, new_token, read_key

_USAGE = """\
usage: {prog} new NAME

Draw a key. Its token, which is what a client sends, is printed on stdout, once: it is kept nowhere. The entry for the
server's file of keys (--keys FILE) is printed on stderr.
"""


def main(argv: Sequence[str], prog: str = "latentd keys") -> int:
    """Run the command; returns the exit status."""
    if argv in (["--help"], ["-h"]):
        print(_USAGE.format(prog=prog), end="")
        return 0
    if len(argv) != 2 or argv[0] != "new":
        print(_USAGE.format(prog=prog), end="", file=sys.stderr)
        return 2
    token = new_token()
    entry = {"name": argv[1], "digest": f"sha256:{digest_of(token)}"}
    try:
        read_key(entry, "keys")
    except KeyFileError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 2
    sys.stdout.write(f"{token}\n")
    sys.stdout.flush()
    print("\nfor the file that the server reads (--keys FILE), below a line `keys:`", file=sys.stderr)
    print(f"  - name: {entry['name']}\n    digest: {entry['digest']}", file=sys.stderr)
    return 0


__all__ = ["main"]
