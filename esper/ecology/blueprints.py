"""The table of blueprints: what may be planted in a slot.

A blueprint is a function from a value and options to a module that maps such a value to one of the
same shape, the seed's *contribution*: the host goes on with `x + alpha * f(x)`. Its last layer
starts at zero, so that planting changes nothing (as in Fixup, arXiv:1901.09321, and ReZero,
arXiv:2003.04887).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from esper.errors import UsageError

Layout = Literal["vectors", "tokens", "image"]
#: Layout of a value by its number of dimensions: [B, C], [B, T, C], [B, C, H, W].
LAYOUTS: Mapping[int, Layout] = {2: "vectors", 3: "tokens", 4: "image"}


@dataclass(frozen=True)
class Value:
    """The value at a slot, as far as a blueprint may know it.

    Attributes:
        shape: sizes; text where they are symbolic.
        dtype: of floating point.
        layout: what the dimensions mean.
    """

    shape: tuple[int | str, ...]
    dtype: torch.dtype
    layout: Layout

    @property
    def width(self) -> int:
        """Number of channels. Raises UnfitError where it is symbolic."""
        size = self.shape[1 if self.layout == "image" else -1]
        if isinstance(size, str):
            raise UnfitError(f"the number of channels is {size}, which is not known")
        return size


class UnfitError(ValueError):
    """A blueprint does not fit a value or its options; the text ends a sentence."""


Build = Callable[..., torch.nn.Module]


@dataclass(frozen=True)
class Blueprint:
    """One entry of the table.

    Attributes:
        name: kebab-case.
        build: `build(value, **options)`; its keyword-only arguments with their defaults are the
            options. Raises UnfitError.
        layouts: values that it fits.
        summary: one line for a person.
    """

    name: str
    build: Build
    layouts: tuple[Layout, ...]
    summary: str

    @property
    def options(self) -> dict[str, Any]:
        """Options with their defaults."""
        return {
            name: parameter.default
            for name, parameter in inspect.signature(self.build).parameters.items()
            if parameter.kind is parameter.KEYWORD_ONLY
        }

    def module(self, value: Value, options: Mapping[str, Any], seed: int) -> torch.nn.Module:
        """The seed's module, drawn from a generator of its own.

        Raises:
            UnfitError: the blueprint has no such option, or does not fit the value.
        """
        known = self.options
        for name, option in options.items():
            if name not in known:
                raise UnfitError(
                    f"it has no option {name!r}; options are {', '.join(known) or 'none'}"
                )
            wanted = type(known[name])
            if type(option) is not wanted and not (wanted is float and type(option) is int):
                raise UnfitError(f"option {name} is a {wanted.__name__}, not {option!r}")
        if value.layout not in self.layouts:
            raise UnfitError(
                f"it is made for {' and '.join(self.layouts)}, and the value is {_say(value)}"
            )
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return self.build(value, **options).to(value.dtype)


def _say(value: Value) -> str:
    return f"{value.layout} [{', '.join(map(str, value.shape))}]"


def register_blueprint(
    name: str, build: Build, layouts: tuple[Layout, ...] = ("vectors", "tokens", "image")
) -> Blueprint:
    """Add a blueprint to the table; proposals then name it.

    Args:
        name: kebab-case, as in `PlantSeed.blueprint`.
        build: `build(value, *, option=default, ...)` gives a module that maps a value to one of the
            same shape, and to zeros at first. The first line of its docstring is shown to people.
        layouts: values that it fits.

    Raises:
        UsageError: the name is taken.
    """
    if name in table():
        raise UsageError(f"the blueprint {name!r} is registered already")
    summary = (inspect.getdoc(build) or name).splitlines()[0]
    _TABLE[name] = Blueprint(name, build, layouts, summary)
    return _TABLE[name]


_TABLE: dict[str, Blueprint] = {}


def table() -> Mapping[str, Blueprint]:
    """All blueprints by name: the built-in ones first."""
    if not _TABLE:
        from esper.ecology.nursery import BUILT_IN

        _TABLE.update({blueprint.name: blueprint for blueprint in BUILT_IN})
    return _TABLE
