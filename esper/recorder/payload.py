"""The base of typed payloads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import ConfigDict

#: Plain data that JSON can hold; canonical.py says how floats that are not finite are written.
Plain = Mapping[str, Any]


@dataclass(frozen=True)
class Payload:
    """What an event of one kind holds.

    Attributes:
        kind: of the events that hold it.
        schema: version of the fields, raised when their meaning changes.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    kind: ClassVar[str]
    schema: ClassVar[int] = 1
