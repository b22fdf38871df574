"""Stage 0: any event of a finished run is explained, and the run is replayed from its log."""

from __future__ import annotations

import random
from collections.abc import Iterable

from esper import replay
from esper.demo.figures import arm, curve, marks
from esper.demo.page import Excerpt, Page, Table
from esper.demo.stages import Setting
from esper.demo.training import train
from esper.recorder.event import Event
from esper.recorder.log import Log
from esper.recorder.why import why

_STEPS = {True: 160, False: 400}
_CHECKED = 200  # events whose explanation is looked at
_LINES = 60  # of an explanation on the page


def run(setting: Setting) -> Page:
    """One run with both agents; then `esper why` and `esper replay` of its log."""
    steps = setting.steps or _STEPS[setting.short]
    path = setting.log("stage0")
    setting.progress(0, 3, "training")
    made = train(
        path,
        seed=0,
        steps=steps,
        data=setting.data,
        rate=5e-3,
        model={"width": 8, "depth": 1},
        agents={
            "tamiyo": {"every": max(4, steps // 6), "warm": 8, "plateau": 0.5},
            "emrakul": {"every": max(4, steps // 8), "warm": 8, "young": 0.5},
        },
        keyframes_every=max(1, steps // 4),
    )
    log = Log(path)
    setting.progress(1, 3, "explaining")
    events = list(log)
    rooted = _rooted(log, events)
    reports = []
    for name, level in (
        ("decision", replay.decision),
        ("pass", replay.passes),
        ("full", replay.full),
    ):
        setting.progress(2, 3, f"replaying at level {name}")
        reports.append(level(log))
    equal = all(report.equal for report in reports)
    told = _telling(log, events)
    rows = tuple(
        (r.level, "equal" if r.equal else "diverges", f"{sum(r.compared.values()):,}")
        for r in reports
    )
    kinds = log.counts()
    counted = tuple((kind, f"{count:,}") for kind, count in sorted(kinds.items()))
    excerpts = [
        Excerpt(f"esper why {path.name} {event.code}", _short(why(log, event))) for event in told
    ]
    excerpts += [
        Excerpt(f"esper replay {path.name} --level {r.level}", _short(r.text(log)))
        for r in reports
        if not r.equal
    ]
    finding = (
        f"{rooted[0]} of {rooted[1]} events that were looked at lead back to what was seen; "
        f"replays at {sum(r.equal for r in reports)} of 3 levels agree in every event compared"
    )
    return Page(
        stage="stage0",
        claim="any event of a finished run is explained, and the run is replayed from its log",
        holds=equal and rooted[0] == rooted[1],
        finding=finding,
        metric="accuracy",
        arms=(arm("both agents", [made]),),
        tables=(
            Table("Replay", ("level", "outcome", "events compared"), rows, words=2),
            Table("Events", ("kind", "count"), counted),
        ),
        curves=(curve("loss", [made]),),
        marks=marks(log),
        excerpts=tuple(excerpts),
        notes=(f"the log is {path.name}: try esper why, esper replay and esper log on it",),
        command="esper demo stage0" + (" --short" if setting.short else ""),
    )


def _rooted(log: Log, events: list[Event]) -> tuple[int, int]:
    """Of events drawn by a fixed seed: how many are explained, and how many were looked at.

    An agent's event is explained by a chain that begins with an observation; any other is a root
    itself, or leads to one.
    """
    drawn = random.Random(0).sample(events, min(_CHECKED, len(events)))
    good = 0
    for event in drawn:
        first = log.causes(event)[0]
        own = event.agent in ("tamiyo", "emrakul")
        good += bool(why(log, event)) and (first.kind == "observation" or not own)
    return good, len(drawn)


def _telling(log: Log, events: Iterable[Event]) -> list[Event]:
    """The first probe and the first rewrite of an agent: what a person would ask about first."""
    found: dict[str, Event] = {}
    for event in events:
        if event.kind in ("probe", "rewrite") and log.causes(event)[0].kind == "observation":
            found.setdefault("probe" if event.agent == "emrakul" else "rewrite", event)
    return list(found.values())


def _short(text: str) -> str:
    lines = text.splitlines()
    more = len(lines) - _LINES
    return "\n".join(lines if more <= 0 else [*lines[:_LINES], f"... and {more} lines more"])
