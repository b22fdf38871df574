"""Syntax of pipelines: text to a tree with positions, without knowing any pass.

    pipeline = [ item { "," item } ]
    item     = NAME [ "{" [ option { [","] option } ] "}" ] [ "(" pipeline ")" ]
    option   = NAME "=" value
    value    = WORD | STRING | "[" [ value { "," value } ] "]"

A WORD holds no white space and none of , { } ( ) [ ] = "; a STRING is quoted as in JSON.
"""

from __future__ import annotations

import json
import re
import unicodedata
from dataclasses import dataclass
from typing import NoReturn

from esper.errors import UsageError

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")
WORD = re.compile(r'[^\s,{}()\[\]="]+')
_STRING = re.compile(r'"(?:[^"\\\x00-\x1f]|\\.)*"')
_SPACE = re.compile(r"\s*")
_MAX_DEPTH = 16
_WINDOW = 96  # columns of a long pipeline shown around an error


@dataclass(frozen=True)
class Word:
    """A scalar as written; a quoted one can only be a string."""

    text: str
    quoted: bool = False


Raw = Word | tuple["Raw", ...]


@dataclass(frozen=True)
class Span:
    """Positions [start, end) in the pipeline text."""

    start: int
    end: int


@dataclass(frozen=True)
class OptionNode:
    """`key=value`."""

    key: str
    value: Raw
    key_span: Span
    value_span: Span


@dataclass(frozen=True)
class ItemNode:
    """A pass as written; `inner` is None without parentheses."""

    name: str
    span: Span
    options: tuple[OptionNode, ...] = ()
    inner: tuple[ItemNode, ...] | None = None
    inner_span: Span = Span(0, 0)


def syntax(text: str) -> tuple[ItemNode, ...]:
    """The tree of a pipeline. Raises UsageError with a caret under the place."""
    return _Parser(text).parse()


def show(raw: Raw) -> str:
    """Text of a value, such that parsing it gives the value back."""
    if isinstance(raw, Word):
        return json.dumps(raw.text) if raw.quoted else raw.text
    return "[" + ",".join(map(show, raw)) + "]"


def complaint(text: str, span: Span, message: str) -> UsageError:
    """A UsageError that shows the line of `text` with carets under `span`."""
    line_start = text.rfind("\n", 0, span.start) + 1
    line_end = text.find("\n", span.start)
    line = text[line_start : len(text) if line_end < 0 else line_end].rstrip("\r")
    start = min(span.start - line_start, len(line))
    end = max(start + 1, min(span.end - line_start, len(line)))
    if len(line) > _WINDOW:
        first = max(0, start - _WINDOW // 2)
        cut = line[first : first + _WINDOW]
        head = "..." if first else ""
        tail = "..." if first + _WINDOW < len(line) else ""
        end = min(end, first + _WINDOW)
        start, end, line = start - first + len(head), end - first + len(head), head + cut + tail
    shown = "".join(c if c.isprintable() else " " for c in line)
    carets = "^" * max(1, _columns(shown[start:end]))
    return UsageError(f"{message}\n  {shown}\n  {' ' * _columns(shown[:start])}{carets}")


def _columns(text: str) -> int:
    """Terminal columns that `text` takes."""
    return sum(
        0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF")
        for c in text
    )


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def parse(self) -> tuple[ItemNode, ...]:
        self._space()
        if self.at == len(self.text):
            return ()
        items = self._items(0)
        if self.at < len(self.text):
            self._fail(f"{self._here()} is not expected after a pass")
        return items

    def _items(self, depth: int) -> tuple[ItemNode, ...]:
        items = [self._item(depth)]
        while self._take(","):
            items.append(self._item(depth))
        return tuple(items)

    def _item(self, depth: int) -> ItemNode:
        name, span = self._name("the name of a pass")
        options: tuple[OptionNode, ...] = ()
        if self._take("{"):
            options = self._options(name)
        opening = self.at
        if not self._take("("):
            return ItemNode(name, span, options)
        if depth + 1 >= _MAX_DEPTH:
            self.at = opening
            self._fail(f"passes are nested more than {_MAX_DEPTH} deep")
        inner = () if self._peek() == ")" else self._items(depth + 1)
        if not self._take(")"):
            self._fail(f"',' or ')' is expected among the inner passes of {name}, {self._found()}")
        return ItemNode(name, span, options, inner, Span(opening, self.at))

    def _options(self, name: str) -> tuple[OptionNode, ...]:
        options: list[OptionNode] = []
        while not self._take("}"):
            if options and self._take(",") and self._peek() == "}":
                self._fail(f"an option of {name} is expected after ','")
            key, key_span = self._name(f"an option of {name} or '}}'")
            if not self._take("="):
                self._fail(f"'=' and a value are expected after option {key} of {name}")
            self._space()
            start = self.at
            value = self._value(f"a value of option {key}")
            options.append(OptionNode(key, value, key_span, Span(start, self.at)))
            self._space()
        return tuple(options)

    def _value(self, what: str, depth: int = 0) -> Raw:
        if self._take("["):
            if depth >= _MAX_DEPTH:
                self._fail(f"lists are nested more than {_MAX_DEPTH} deep")
            if self._take("]"):
                return ()
            values = [self._value(what, depth + 1)]
            while self._take(","):
                values.append(self._value(what, depth + 1))
            if not self._take("]"):
                self._fail(f"',' or ']' is expected in the list, {self._found()}")
            return tuple(values)
        if self._peek() == '"':
            string = _STRING.match(self.text, self.at)
            if string is None:
                self._fail("this string is not closed")
            try:
                text = str(json.loads(string.group()))
            except ValueError:
                raise complaint(
                    self.text, Span(*string.span()), "this string has an unknown escape"
                ) from None
            self.at = string.end()
            return Word(text, quoted=True)
        word = WORD.match(self.text, self.at)
        if word is None:
            self._fail(f"{what} is expected, {self._found()}")
        self.at = word.end()
        return Word(word.group())

    def _name(self, what: str) -> tuple[str, Span]:
        self._space()
        match = NAME.match(self.text, self.at)
        if match is None:
            self._fail(f"{what} is expected, {self._found()}")
        self.at = match.end()
        return match.group(), Span(*match.span())

    def _take(self, character: str) -> bool:
        if self._peek() != character:
            return False
        self.at += 1
        return True

    def _peek(self) -> str:
        self._space()
        return self.text[self.at : self.at + 1]

    def _space(self) -> None:
        match = _SPACE.match(self.text, self.at)
        assert match is not None, "the pattern matches nothing at all, too"
        self.at = match.end()

    def _here(self) -> str:
        return f"'{self._peek()}'" if self._peek() else "the end"

    def _found(self) -> str:
        return f"but {self._here()} is here" if self._peek() else "but the pipeline ends here"

    def _fail(self, message: str) -> NoReturn:
        raise complaint(self.text, Span(self.at, self.at + 1), message)
