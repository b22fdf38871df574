"""Reports for tests: a complete one, an empty one, one in which every name is hostile."""

from __future__ import annotations

from esper.propose import DropRegion, PruneUnits
from esper.records import Record
from esper.report.data import (
    AxisRow,
    ModelFacts,
    PassTime,
    Point,
    Quality,
    ReportData,
    VerdictRow,
)

HOSTILE = "<script>window.broken=1</script>\"'&\u202e\x00<img src=x onerror=alert(1)>"


def axes(name: str = "net", heads: tuple[int, ...] = (0, 1, 2, 3)) -> tuple[AxisRow, ...]:
    """Two layers with heads and neurons under an embedding that is fixed."""
    rows = [
        AxisRow(
            id=f"axis:{name}.embed/embedding",
            kind="embedding",
            size=96,
            frozen="graph output (contract)",
            modules=(f"{name}.embed", f"{name}.norm"),
        )
    ]
    for layer in range(2):
        path = f"{name}.layer.{layer}"
        kept = heads if layer else (0, 1, 2, 3)
        rows += [
            AxisRow(
                id=f"axis:{path}.attention/heads",
                kind="heads",
                size=len(kept),
                units=kept,
                modules=(f"{path}.attention.query",),
            ),
            AxisRow(
                id=f"axis:{path}.up/neurons", kind="neurons", size=384, modules=(f"{path}.up",)
            ),
        ]
    return tuple(rows)


def model(rows: tuple[AxisRow, ...]) -> ModelFacts:
    """Facts about a model with these axes."""
    size = sum(row.size for row in rows) * 1000
    return ModelFacts(parameters=size, bytes=4 * size, layers=9, operations=40, axes=rows)


def records(name: str = "net") -> tuple[Record, ...]:
    """One record of each kind."""
    axis = f"axis:{name}.layer.1.attention/heads"
    return (
        Record(
            kind="passed",
            code="applied",
            reason="2 of 4 units cut",
            pass_name="prune",
            proposal=PruneUnits(axis=axis, units=(1, 3)),
            figures={"units": 2, "gain": 0.25},
        ),
        Record(
            kind="missed",
            code="frozen-axis",
            reason="graph output (contract)",
            node="output",
            remedy="project the output",
            pass_name="prune",
            proposal=PruneUnits(axis=f"axis:{name}.embed/embedding", units=(0,)),
        ),
        Record(
            kind="failure",
            code="verify-failed",
            reason="shapes disagree",
            node="view_2",
            pass_name="drop-regions",
            proposal=DropRegion(region=f"phage:{name}.layer.0"),
        ),
        Record(kind="analysis", code="note", reason="nothing to fold", pass_name="fold-constants"),
    )


VERDICT = VerdictRow(
    label="whole model",
    outcome="accept",
    speedup=1.623,
    lower=1.581,
    upper=1.664,
    p=1e-5,
    rounds=40,
    baseline_backend="onnxruntime",
    candidate_backend="openvino",
    baseline_ms=12.43,
    candidate_ms=7.66,
    reason="the lower bound beats the bar",
)


def complete(name: str = "net", word: str = "Sample") -> ReportData:
    """A report with something in every section; `name` and `word` go wherever text may go."""
    return ReportData(
        title=word,
        command=f"esper-opt {word}",
        environment={"Processor": word, word: "2.13.0"},
        before=model(axes(name)),
        after=model(axes(name, (0, 2))),
        records=records(name),
        verdicts=(VERDICT.model_copy(update={"label": word, "outcome": "ambiguous"}),),
        final=VERDICT,
        quality=Quality(metric=word, before=0.61, after=0.607, floor=0.6),
        points=(
            Point(label=word, speedup=1.62, lower=1.58, upper=1.66, quality=0.607, accepted=True),
            Point(label="too much", speedup=2.0, lower=1.9, upper=2.1, quality=0.5, accepted=False),
        ),
        timing=(PassTime(pass_name=word, seconds={"plan": 0.2, "gate": 31.0}),),
        exact=True,
        notes=(word,),
    )


def hostile() -> ReportData:
    """Text that would break out of the page, wherever text may go."""
    return complete(f"net.{HOSTILE}", HOSTILE)


def empty() -> ReportData:
    """A model and nothing else."""
    return ReportData(title="Empty", before=model(()))


def refused() -> ReportData:
    """Every proposal refused, nothing measured."""
    return ReportData(title="Refused", before=model(axes()), records=records()[1:2] * 3)
