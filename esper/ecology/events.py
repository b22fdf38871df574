"""The drop-shot buffer: the latest events of an ecology as a fixed block of plain numbers.

An extra observation: what was just tried, where, and how it went. An observer that sees only the
present state cannot tell a target that was never touched from one that was touched a tick ago.
"""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

SIZE = 16
FIELDS = ("age", "kind", "target", "result", "figure")
# A number for each kind of event; those of other packages count as `other`.
KINDS = (
    "other",
    "sedate", "wake", "lyse", "forget-scar", "note-probe", "tend-ledger", "grant-lease",
    "prune-units", "drop-region", "widen-units", "plant-seed", "advance-seed", "cull-seed",
    "rollback", "deepen", "add-branch", "ramp-units", "merge-units", "merge-branches",
    "low-rank-swap", "quantize-phage", "set-mask", "regrow-mask", "gate-cells",
)  # fmt: skip


class DropShot(NamedTuple):
    """One event.

    Attributes:
        tick: when.
        kind: a proposal type, or `rollback`.
        target: ID of what it was about.
        result: 1 passed, 0 was refused, -1 failed or did harm.
        figure: one number about it: of a probe the change of the loss.
    """

    tick: int
    kind: str
    target: str
    result: int
    figure: float


class EventBuffer:
    """The 16 most recent events; older ones are forgotten."""

    def __init__(self) -> None:
        self._events: deque[DropShot] = deque(maxlen=SIZE)

    def __len__(self) -> int:
        return len(self._events)

    def push(self, event: DropShot) -> None:
        """An event happened."""
        self._events.append(event)

    def events(self) -> list[DropShot]:
        """Oldest first."""
        return list(self._events)

    def numbers(self, tick: int) -> list[list[float]]:
        """`SIZE` rows of `FIELDS`, newest first, all between -1 and 1; missing ones are zeros.

        Age is log1p(ticks) / 10 and figures are tanh of themselves. A target is a number that
        its ID always has: equal ones are the same target, nothing else is meant by it.
        """
        rows = [
            [
                min(math.log1p(max(tick - event.tick, 0)) / 10, 1.0),
                (_kind(event.kind) + 1) / len(KINDS),
                target_number(event.target),
                float(event.result),
                math.tanh(event.figure),
            ]
            for event in reversed(self._events)
        ]
        return rows + [[0.0] * len(FIELDS) for _ in range(SIZE - len(rows))]

    def data(self) -> list[list[Any]]:
        """Plain data for checkpoints."""
        return [list(event) for event in self._events]

    def assign(self, data: list[list[Any]]) -> None:
        """Become what `data` returned."""
        self._events.clear()
        self._events.extend(DropShot(*event) for event in data)


def shot(
    tick: int, kind: str, target: str, result: str, figures: Mapping[str, Any] | None = None
) -> DropShot:
    """The event of a proposal whose record is of the kind `result`."""
    figure = (figures or {}).get("change", 0.0)
    outcome = {"passed": 1, "missed": 0}.get(result, -1)
    return DropShot(tick, kind, target, outcome, float(figure))


def target_number(target: str) -> float:
    """A number in (0, 1] for an ID, the same on every machine; 0 for none."""
    if not target:
        return 0.0
    digest = hashlib.blake2b(target.encode(), digest_size=4).digest()
    return (int.from_bytes(digest, "big") + 1) / 2**32


def _kind(name: str) -> int:
    return KINDS.index(name) if name in KINDS else 0
