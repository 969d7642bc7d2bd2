"""A value that came from the environment, which an error about it then names."""

from __future__ import annotations


class Variable(str):
    """Holds the text of a variable, and its name beside it: as an option's default it is told from what was typed."""

    def __new__(cls, name: str, text: str) -> Variable:
        self = super().__new__(cls, text)
        self.name = name
        return self

    name: str


def source_of(text: str, option: str) -> str:
    """Return what an error calls the place that a text came from: its variable, else the option as it is typed."""
    return text.name if isinstance(text, Variable) else option
