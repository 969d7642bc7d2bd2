"""Documents name files, links and words of make that are there; so do the comments and docstrings of the code."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import tokenize
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parent.parent
LISTED = subprocess.run(
    ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
)
FILES = [name for name in LISTED.stdout.splitlines() if (ROOT / name).is_file()]
FOLDERS = {folder.as_posix() for name in FILES for folder in PurePosixPath(name).parents} - {"."}
NAMES = {PurePosixPath(folder).name for folder in FOLDERS}  # of folders: what begins with another is not ours
PAGES = [name for name in FILES if re.fullmatch(r"[^/]+\.md|docs/.+\.md|graphs/README\.md", name)]
PRODUCT = ("latentd", "pipeline", "graphs", "model", "kernels", "export", "engines", "server", "training", "demo")
PRODUCT += ("benchmarks",)
CODE = [name for name in FILES if name.endswith(".py") and name.startswith(tuple(f"{room}/" for room in PRODUCT))]
WORDS = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.M))

# Named before they are there. Whatever has come is to leave this list.
COMING: set[str] = set()
COMING_WORDS: set[str] = set()

ENDINGS = "py|md|csv|json|proto|toml|yml|yaml|cpp|txt|onnx|png|gz"
# Not a part of a longer path, of an address, or of COMMIT:path, which is how git names a file that has gone.
PATH = re.compile(rf"(?<![\w./:<>$~-])((?:[\w.-]+/)+[\w.*-]+\.(?:{ENDINGS}))(?![\w/])")
FOLDER = re.compile(r"(?<![\w./:<>$~-])((?:[\w.-]+/)+)(?=[`,;:.)\s]|$)")
BARE = re.compile(r"(?<![\w./:<>$~*-])([a-z_]+\.py)\b")


def there(path: str) -> bool:
    """Is it a file or a folder of ours, by its whole path or by the end of it?

    What begins elsewhere, and what has a NAME for the reader to choose, is not asked.
    """
    if path.split("/")[0] not in NAMES or "NAME" in path:
        return True
    pattern = path.rstrip("/")
    return any(fnmatchcase(name, pattern) or fnmatchcase(name, f"*/{pattern}") for name in (*FILES, *FOLDERS, *COMING))


def commented(path: str) -> str:
    """The comments and docstrings of a Python file."""
    source = (ROOT / path).read_text()
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = [token.string for token in tokens if token.type == tokenize.COMMENT]
    nodes = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = [ast.get_docstring(node) or "" for node in ast.walk(ast.parse(source)) if isinstance(node, nodes)]
    return "\n".join((*comments, *docstrings))


def words_of_make(text: str) -> set[str]:
    """What stands behind `make` in code: between backticks, or in a line of its own."""
    spans = re.findall(r"`([^`\n]+)`", text) + re.findall(r"^(?: {4}|\t)(.+)$", text, re.M)
    return {word for span in spans for word in re.findall(r"(?:^|[;&] )make ([a-z][a-z-]+)", span)}


def anchors(page: str) -> set[str]:
    """The names that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.+)$", (ROOT / page).read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_what_is_to_be_found_is_found() -> None:
    assert len(PAGES) >= 11 and len(CODE) > 200 and {"demo", "test", "gpu-check"} <= WORDS
    text = "see engines/cuda_step.py, `kernels/*_tiles.py` and engines/nowhere/; c0ffee1:kernels/gone.py, torch/nn/x.py"
    assert [path for path in PATH.findall(text) if not there(path)] == ["engines/cuda_step.py"]
    assert [path for path in FOLDER.findall(text) if not there(path)] == ["engines/nowhere/"]
    assert words_of_make("`make demo`, so make it\n    make serve A=b    # make sure\n") == {"demo", "serve"}


@pytest.mark.parametrize("page", PAGES)
def test_files_that_a_page_names(page: str) -> None:
    text = (ROOT / page).read_text()
    assert not [path for path in (*PATH.findall(text), *FOLDER.findall(text)) if not there(path)]
    known = {PurePosixPath(name).name for name in (*FILES, *COMING)}
    assert not [name for name in BARE.findall(text) if name not in known]


@pytest.mark.parametrize("page", PAGES)
def test_links_of_a_page_lead_somewhere(page: str) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text()):
        if link.startswith(("http", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent.joinpath(path).resolve() if path else ROOT / page
        assert target.exists() or target.relative_to(ROOT).as_posix() in COMING, link
        assert not anchor or anchor in anchors(target.relative_to(ROOT).as_posix()), link


@pytest.mark.parametrize("page", PAGES)
def test_words_of_make_and_modules_that_a_page_names(page: str) -> None:
    text = (ROOT / page).read_text()
    assert words_of_make(text) <= WORDS | COMING_WORDS
    for module in re.findall(r"python[\d.]* -m ([\w.]+)", text):
        path = module.replace(".", "/")
        assert there(f"{path}.py") or there(f"{path}/__main__.py"), module


@pytest.mark.parametrize("path", CODE)
def test_files_that_comments_and_docstrings_name(path: str) -> None:
    text = commented(path)
    assert not [name for name in PATH.findall(text) if not there(name)]
    assert words_of_make(text) <= WORDS


def test_what_was_to_come_is_not_there_yet() -> None:
    assert not COMING & set(FILES) and not COMING_WORDS & WORDS, "take what has come out of the list"
