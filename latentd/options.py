"""The options of the command line: flag > environment variable LATENTD_<NAME> > default."""

from __future__ import annotations

import argparse
import os
import re
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from latentd import __version__
from latentd.channel import DEFAULT_ADDRESS
from latentd.picture import FITS, FORMATS
from latentd.variables import meant

PRIORITIES = {"batch": 0, "interactive": 1}  # names of two of the numbers
_EXAMPLES = """\
examples:
  %(prog)s "red apple, color style" -o apple.png --steps 20 --seed 7
  %(prog)s "a red apple" "a green pear" -o fruit/ --preview --film fruit.webp
  %(prog)s "a red apple" -o - --format jpeg > apple.jpg

A file that -o or --film names is replaced if it is there, and the line about it says so. A name made from the prompt
or with a number (apple-1.png) never replaces a file: numbers go on after those that are there.

`%(prog)s serve [MODEL]` runs a server (serve --help), `%(prog)s keys new NAME` draws a key for one, `%(prog)s swap
NAME` has one serve another model; the prompt "serve" is %(prog)s -- serve.

Every option is also an environment variable: --steps is LATENTD_STEPS, --list-models is LATENTD_LIST_MODELS=1;
a flag wins over the variable. What is not said is left to the model's own defaults; --list-models shows them.
Exit code: 0 done, 1 a picture failed, 2 bad usage, 130 interrupted.
"""

_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off", "")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see --help)\n")


def parse(argv: Sequence[str], environ: Mapping[str, str] | None = None) -> argparse.Namespace:
    """Read the options of one run. Bad usage is one sentence on stderr and SystemExit(2)."""
    parser = _parser()
    _defaults_from(os.environ if environ is None else environ, parser)
    # A variable says what is liked, a flag what is wanted: only a flag contradicts the suffix of -o.
    liked = parser.get_default("format")
    parser.set_defaults(format=None)
    options, unknown = parser.parse_known_intermixed_args(argv)
    if unknown:
        name = unknown[0].partition("=")[0]
        known = [flag.removeprefix("--") for flag in parser._option_string_actions if flag.startswith("--")]
        parser.error(f"there is no option {name}{meant(name, known, '--')}")
    options.liked_format = liked or "png"
    if not options.prompts and not options.list_models:
        parser.error("no prompt given")
    return options


def _parser() -> _Parser:
    installed = Path(sys.argv[0]).name == "latentd"
    parser = _Parser(
        prog="latentd" if installed else "python -m latentd",
        description="Send prompts to a latentd server and write the pictures. Several prompts are sent\nat once, "
        "so that they share the server's steps.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    on_off = argparse.BooleanOptionalAction
    add = parser.add_argument
    add("prompts", nargs="*", metavar="PROMPT", help="what the picture shows; quote it")
    add(
        "-o",
        "--output",
        metavar="PATH",
        default="",
        help="a file (.png, .jpg, .webp; several pictures are numbered: apple-1.png), - for stdout (one picture), or, "
        "ending in / or existing, a folder; without it, or in a folder, files are named after the prompt",
    )
    add("--negative", metavar="TEXT", default="", help="what it should not show")
    add("--size", type=size, metavar="WxH", help="one of the model's sizes, such as 512x512")
    add("--steps", type=whole, metavar="N", help="1 up to the model's limit (usually 150); more is finer and slower")
    add("--guidance", type=number, metavar="G", help="0..30, how closely to follow the prompt; <= 1 costs half")
    add("--sampler", metavar="NAME", help="such as dpmpp_2m, euler_a, ddim")
    add("--seed", type=whole, metavar="N", help="0..4294967295: the same seed gives the same picture; else drawn")
    add("--images", type=pictures, metavar="N", default=1, help="pictures per prompt, 1..8 (default: 1)")
    add("--long-prompt", action=on_off, default=False, help="use a prompt of up to four encoder lengths, not one")
    add("--prompt-weights", action=on_off, default=False, help="(words:1.3) weigh more, \\( is a bracket")
    add("--clip-skip", type=whole, metavar="N", default=0, help="leave out the text encoder's last N layers")
    add("--guidance-start", type=number, metavar="F", help="guide from this fraction of the steps on, 0..1")
    add(
        "--guidance-end",
        type=number,
        metavar="F",
        help="guide up to this fraction of the steps, 0..1; the rest costs half",
    )
    add("--init", metavar="PATH", help="begin with this picture (PNG, JPEG, WebP; at most 16 megapixels)")
    add("--strength", type=number, metavar="S", help="0..1: how much of --init is drawn anew (default: 0.8)")
    add("--mask", metavar="PATH", help="as large as --init: what is white is redrawn, all else stays to the bit")
    add("--fit", choices=FITS, help="--init to --size: cut, stretched, or on grey (default: crop)")
    add("--style", metavar="PATH", help="take a style from this picture, where the model has a style adapter")
    add("--style-weight", type=number, metavar="W", help="0..2: how much of --style (default: 1)")
    add("--original-size", metavar="WxH", default="", help="SDXL: draw it as if it had been so large")
    add("--crop", metavar="LxT", default="", help="SDXL: and cropped at this corner (default: 0x0)")
    add("--target-size", metavar="WxH", default="", help="SDXL: to this size")
    add("--keep", type=whole, metavar="N", help="of --images the N nearest to the prompt, where the model has a judge")
    add(
        "--lora",
        type=lora,
        action="append",
        metavar="NAME[:WEIGHT]",
        help="a LoRA of the server's folder, which --list-models shows; may be given several times (weight: 1)",
    )
    add("--format", choices=FORMATS, help="of a file whose name has no suffix (default: png); else the suffix says it")
    add("--preview", action=on_off, default=False, help="draw the forming picture in the terminal")
    add("--film", type=film_path, metavar="PATH", help="also write the picture forming, as an animated .webp")
    add(
        "--server",
        metavar="HOST[:PORT]",
        default=DEFAULT_ADDRESS,
        help=f"where it listens (default: {DEFAULT_ADDRESS})",
    )
    add(
        "--key",
        metavar="KEY|@FILE",
        help="where the server wants a key: @ and a file that has it; LATENTD_KEY may have it too, while what stands "
        "on a command line is seen by all who use this machine",
    )
    add("--tls", action=on_off, help="encrypt; the server's certificate is a public authority's")
    add("--tls-ca", metavar="PATH", help="the same, with the authorities of this file, in PEM")
    add("--tls-client-cert", metavar="PATH", help="this client's certificate, in PEM, where the server wants one")
    add("--tls-client-key", metavar="PATH", help="and its key")
    add("--model", type=model_id, metavar="ID", default="", help="which model, if the server has several")
    add(
        "--priority",
        type=priority,
        metavar="NAME|N",
        default=0,
        help="batch (0), interactive (1) or a number: higher comes first, if the server lets you (default: 0)",
    )
    add("--timeout", type=seconds, metavar="SECONDS", help="give up after so long (default: wait)")
    add("--list-models", action=on_off, default=False, help="show the server's models and their defaults, and exit")
    add("--version", action="version", version=f"latentd {__version__}")
    return parser


def whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def priority(text: str) -> int:
    """Read a priority by its name or its number."""
    if text in PRIORITIES:
        return PRIORITIES[text]
    try:
        return whole(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text!r} is not {', '.join(PRIORITIES)} or a whole number") from None


def size(text: str) -> tuple[int, int]:
    """Read `512x768` as (width, height) in pixels."""
    match = re.fullmatch(r"(\d{1,9})[xX](\d{1,9})", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not WIDTHxHEIGHT, such as 512x512")
    return int(match[1]), int(match[2])


def lora(text: str) -> tuple[str, float]:
    """Read `name:0.8` as a name and its weight."""
    name, colon, weight = text.rpartition(":")
    return (name, number(weight)) if colon else (text, 1.0)


def pictures(text: str) -> int:
    """Read a prompt's number of pictures; the server's limit is lower, this one bounds the names made beforehand."""
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= 1000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number in 1..1000")
    return int(text)


def seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return value


def film_path(text: str) -> Path:
    if Path(text).suffix.lower() != ".webp":
        raise argparse.ArgumentTypeError(f"{text!r} does not end in .webp")
    return Path(text)


def model_id(text: str) -> str:
    """Return a model's id, its folder's name: a path (LATENTD_MODEL as the server reads it) means its last part."""
    return Path(text).name


def _defaults_from(environ: Mapping[str, str], parser: argparse.ArgumentParser) -> None:
    for action in parser._actions:
        name = f"LATENTD_{action.dest.upper()}"
        if not action.option_strings or action.dest in ("help", "version") or name not in environ:
            continue
        try:
            parser.set_defaults(**{action.dest: _value(action, environ[name])})
        except (ValueError, argparse.ArgumentTypeError) as error:
            parser.error(f"environment variable {name}: {error}")


def _value(action: argparse.Action, text: str) -> object:
    if isinstance(action, argparse.BooleanOptionalAction):
        if text.lower() not in _TRUE + _FALSE:
            raise ValueError(f"{text!r} is not one of {', '.join(_TRUE + _FALSE[:-1])}")
        return text.lower() in _TRUE
    if text == "":
        return action.default  # set but empty means not set, as in most shells' ${NAME:-default}
    if action.dest == "lora":  # may be given several times
        return [lora(part) for part in text.split(",")]
    value = action.type(text) if callable(action.type) else text
    if action.choices is not None and value not in action.choices:
        raise ValueError(f"{text!r} is not one of {', '.join(action.choices)}")
    return value


def hints(options: Namespace) -> list[str]:
    """List what was perhaps meant otherwise, in sentences; it is done as it was said."""
    sentences, prompts = list[str](), options.prompts
    if len(prompts) > 1 and all(prompt.isascii() and len(prompt.split()) == 1 for prompt in prompts):
        sentences.append(
            f"{len(prompts)} prompts of one word each, a request each; one prompt of several words is quoted: "
            f'"{" ".join(prompts)}"'
        )
    if options.negative and options.guidance is not None and options.guidance <= 1:
        sentences.append(f"--negative counts where --guidance is above 1; it is {options.guidance:g}")
    return sentences
