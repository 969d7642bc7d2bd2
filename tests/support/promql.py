"""What an expression of PromQL names: metrics, labels, functions. It knows as much grammar as deploy/ uses."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

FUNCTIONS = {"absent", "changes", "histogram_quantile", "increase", "label_values", "rate", "time", "vector"}
AGGREGATIONS = {"sum", "min", "max"}
OPERATORS = {"and", "or", "unless"}
_LISTS = r"\b(by|on|without|ignoring|group_left|group_right)\s*\(([^)]*)\)"
_TOKENS = re.compile(
    r'"[^"]*"|\{[^}]*\}|\[[^\]]*\]|[a-zA-Z_:][\w:]*|\d+(?:\.\d+)?|[()+*/<>=!,-]|\s+',
)


@dataclass
class Expression:
    metrics: set[str] = field(default_factory=set)
    matched: dict[str, set[str]] = field(default_factory=dict)  # labels between a metric's braces
    grouped: set[str] = field(default_factory=set)  # labels of by, on and so on


def read(text: str) -> Expression:
    """Read an expression. Errors: AssertionError for whatever is not understood."""
    found = Expression()
    for _, labels in re.findall(_LISTS, text):
        found.grouped |= {label for label in re.split(r"[,\s]+", labels) if label}
    text = re.sub(_LISTS, " ", text)
    place, depth, metric = 0, 0, ""
    while place < len(text):
        token = _TOKENS.match(text, place)
        assert token, f"nobody knows {text[place : place + 20]!r} in {text!r}"
        place, word = token.end(), token[0]
        depth += (word == "(") - (word == ")")
        assert depth >= 0, text
        if re.match(r"[a-zA-Z_:]", word) and word not in OPERATORS:
            if re.match(r"\s*\(", text[place:]):
                assert word in FUNCTIONS | AGGREGATIONS, f"{word} is no function"
                continue
            metric = word
            found.metrics.add(word)
            found.matched.setdefault(word, set())
        elif word.startswith("{"):
            matchers = re.fullmatch(r'\{(\s*\w+\s*(=|!=|=~|!~)\s*"[^"]*"\s*,?)*\}', word)
            assert metric and matchers, word
            found.matched[metric] |= set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", word))
        elif word.startswith("["):
            assert re.fullmatch(r"\[(\d+[smhd]|\$__rate_interval)\]", word), word
    assert depth == 0 and found.metrics, text
    return found
