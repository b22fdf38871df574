"""From INPUT and the options about it to a traced model with example inputs."""

from __future__ import annotations

import contextlib
import io
import sys
from dataclasses import dataclass, field

import torch

from esper.cli import specs
from esper.cli.inputs import Loaded, read_input
from esper.cli.loaders import load_function, user_line
from esper.cli.pt2_read import first_line
from esper.errors import UsageError
from esper.instruments import Progress
from esper.ir.model import Model
from esper.passbase import Batch


@dataclass(frozen=True)
class Source:
    """What the command line says about the model; the fields are named as the options are."""

    input: str
    model: str | None = None
    allow_pickle: bool = False
    inputs: str | None = None
    dynamic: str | None = None
    static: bool = False
    seed: int = 0


@dataclass
class Subject:
    """A traced model.

    Attributes:
        model: what was read.
        inputs: example inputs, or None (a `.esper` file without `--inputs`).
        notes: sentences about it.
    """

    model: Model
    inputs: specs.Inputs | None
    notes: list[str] = field(default_factory=list)


def read(source: Source, progress: Progress) -> Subject:
    """Read and trace a model. Raises InputError, UsageError or TraceError."""
    factory = None if source.model is None else load_function(source.model, "--model")
    with progress.task("reading the model"):
        loaded = read_input(source.input, factory=factory, allow_pickle=source.allow_pickle)
    inputs = _inputs(source, loaded, progress)
    notes = list(loaded.notes)
    if isinstance(loaded.module, Model):
        for name, given in (("--dynamic", source.dynamic), ("--static", source.static)):
            if given:
                raise UsageError(f"{name} is for tracing, and {source.input} is traced already")
        if inputs is not None:
            check_inputs(loaded.module, inputs.example)
        return Subject(loaded.module, inputs, notes)
    if inputs is None:
        raise UsageError(
            f"{source.input} needs example inputs: give --inputs {loaded.hint} or FILE.py:fn"
        )
    check_inputs(loaded.module, inputs.example)
    return Subject(_trace(source, loaded, inputs, progress), inputs, notes)


def check_inputs(module: torch.nn.Module, inputs: Batch) -> None:
    """Run the model once. Raises UsageError when it does not run on these inputs.

    This tells inputs that do not fit from a model that cannot be traced.
    """
    args, kwargs = inputs
    training = module.training
    try:
        with torch.no_grad():
            module.eval()(*args, **kwargs)
    except Exception as error:
        where = user_line(error)
        at = f", at {where}" if where else ""
        raise UsageError(
            f"the model does not run on the example inputs: {type(error).__name__}: "
            f"{first_line(error)}{at}"
        ) from error
    finally:
        module.train(training)


def _inputs(source: Source, loaded: Loaded, progress: Progress) -> specs.Inputs | None:
    if source.inputs is not None:
        with progress.task("making inputs"):
            return specs.make_inputs(
                source.inputs, loaded.module, source.seed, keywords=loaded.keywords
            )
    found = loaded.inputs
    return None if found is None else specs.Inputs(found, found)


def _trace(source: Source, loaded: Loaded, inputs: specs.Inputs, progress: Progress) -> Model:
    from esper.ir.trace import Dynamic, trace

    dynamic: Dynamic = "static" if source.static else "batch"
    if source.dynamic is not None:
        dynamic = specs.parse_dynamic(source.dynamic)
    args, kwargs = inputs.example
    chatter = io.StringIO()
    # torch.export prints the whole graph when it fails, which we say in one sentence.
    with progress.task("tracing the model"), contextlib.redirect_stderr(chatter):
        model = trace(loaded.module, args, kwargs, dynamic=dynamic)
    sys.stderr.write(chatter.getvalue())  # what the user's own code printed
    return model
