"""The whole protocol for one entry of the zoo, step by step, each step a function."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

import esper
from esper.cli import outputs
from esper.ir.anatomy import Axis
from esper.ir.model import Model
from esper.ir.verifier import verify
from tests import oracle, zoo
from tests.zoo.entry import Entry

SHARE = 0.3


class Subject:
    """One entry, traced in float64."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.module, self.args, self.kwargs = entry.build(torch.float64)
        self.model = oracle.as_float64(esper.trace(self.module, self.args, self.kwargs))

    @property
    def axes(self) -> list[Axis]:
        """Axes that may be cut."""
        return list(zoo.cuttable(self.model).values())


def check(entry: Entry, folder: Path) -> None:
    """Everything."""
    subject = Subject(entry)
    traced(subject)
    reach(subject)
    alone(subject)
    cut = together(subject)
    step(subject, cut)
    exported(subject, cut)
    stored(subject, cut, folder)
    if not entry.onnx:
        onnx(subject, folder)


def traced(subject: Subject) -> None:
    """The traced model computes what the module computes, and verifies in both modes."""
    verify(subject.model)
    if subject.entry.trains:
        verify(copy.deepcopy(subject.model).train())
        module = copy.deepcopy(subject.module).train()
        esper.trace(module, subject.args, subject.kwargs)
    if subject.entry.notes:
        assert any(subject.entry.notes in note for note in subject.model.notes)
    else:
        assert not subject.model.notes, subject.model.notes


def reach(subject: Subject) -> None:
    """What may be cut is what the entry says, kind by kind; the rest names what stops it."""
    found = Counter(axis.kind for axis in subject.axes)
    assert dict(found) == dict(subject.entry.reach), dict(found)
    every = subject.model.anatomy.axes
    for name, text in subject.entry.stops.items():
        assert text in (every[name].frozen_reason or ""), every[name]


def alone(subject: Subject) -> None:
    """Each axis loses units alone: outputs, and with training also gradients and buffers."""
    for axis in subject.axes:
        removed = {axis.id: zoo.some_units(axis, SHARE, seed=1)}
        oracle.assert_exact_cut(
            subject.model, removed, subject.args, subject.kwargs, train=subject.entry.trains
        )


def together(subject: Subject) -> Model:
    """All axes lose units at once."""
    removed = zoo.joint_cut(subject.axes, SHARE)
    return oracle.assert_exact_cut(
        subject.model, removed, subject.args, subject.kwargs, train=subject.entry.trains
    )


def step(subject: Subject, cut: Model) -> None:
    """The cut model takes an optimizer step, and every gradient that flows is finite."""
    if not subject.entry.trains:
        return
    model = copy.deepcopy(cut).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    outputs = [o for o in oracle.run(model, subject.args, subject.kwargs) if o.requires_grad]
    torch.autograd.backward([o.square().mean() for o in outputs])
    optimizer.step()
    moved = [n for n, p in model.named_parameters() if not torch.equal(p, before[n])]
    assert moved
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


def exported(subject: Subject, cut: Model) -> None:
    """`torch.export` takes the cut model again."""
    model = copy.deepcopy(cut).eval()
    program = torch.export.export(model, subject.args, subject.kwargs, strict=False)
    again = pytree.tree_leaves(program.module()(*subject.args, **subject.kwargs))
    _same(again, model, subject.args, subject.kwargs)


def stored(subject: Subject, cut: Model, folder: Path) -> None:
    """A file gives the same model back."""
    model = copy.deepcopy(cut).eval()
    path = folder / "model.esper"
    esper.save(model, path)
    loaded = esper.load(path)
    # Not the text: a new analysis does not see axes that were cut down to one unit.
    assert _units(loaded) == _units(model)
    _same(oracle.run(loaded, subject.args, subject.kwargs), model, subject.args, subject.kwargs)


def onnx(subject: Subject, folder: Path) -> None:
    """The float32 model, cut in the same way: the writer compares it with onnxruntime."""
    module, args, kwargs = subject.entry.build(torch.float32)
    model = esper.trace(module, args, kwargs)
    cut = oracle.cut_all(model, zoo.joint_cut(list(zoo.cuttable(model).values()), SHARE))
    output = outputs.prepare(str(folder / "model.onnx"))
    outputs.write_output(cut, output, (args, kwargs))
    assert output.path.stat().st_size > 0


def _units(model: Model) -> dict[str, tuple[int, ...]]:
    return {name: axis.unit_ids for name, axis in model.anatomy.axes.items()}


def _same(found: Any, model: Model, args: Any, kwargs: Any) -> None:
    tensors = [t for t in found if isinstance(t, torch.Tensor)]
    for mine, theirs in zip(tensors, oracle.run(model, args, kwargs), strict=True):
        oracle.close(mine, theirs, "output")
