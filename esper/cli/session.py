"""From options to a run of `esper.optimize` and back: everything `esper-opt` does with a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from esper.cli import outputs, specs
from esper.cli.loaders import call_user
from esper.cli.options import Options
from esper.cli.reading import Source, read
from esper.cli.reproducer import Reproducer
from esper.errors import TargetError, UsageError
from esper.instruments import Bisect, Dump, Instrument, Printing, Progress, Remarks, Stats, Timing
from esper.passbase import passes
from esper.pipeline import Pipeline, parse, preset, steps

if TYPE_CHECKING:
    from esper.gate.gate import Gate
    from esper.optimization import Result


@dataclass
class Session:
    """One run of `esper-opt` on one model; every part is made before any long work starts.

    Attributes:
        options: the command line.
        pipeline: what will run.
        output: where the result goes, or None.
        notes: sentences gathered on the way.
    """

    options: Options
    pipeline: Pipeline
    output: outputs.Output | None
    progress: Progress
    timing: Timing
    stats: Stats
    reproducer: Reproducer
    instruments: Sequence[Instrument]
    notes: list[str] = field(default_factory=list)
    inputs: specs.Inputs | None = None

    @classmethod
    def prepare(cls, options: Options, command: str) -> Session:
        """Check everything that can be checked without the model. Raises EsperError."""
        pipeline = choose_pipeline(options)
        _check_search(options, pipeline)
        if options.max_loss is not None:
            specs.parse_max_loss(options.max_loss)
        if options.dynamic is not None:
            specs.parse_dynamic(options.dynamic)
        output = None if options.output is None else outputs.prepare(options.output)
        _check_format(output, pipeline)
        for path in (options.records, options.report):
            if path is not None:
                outputs.check_writable(path)
        mode = options.progress or "auto"
        progress = Progress("never" if options.quiet or options.json else mode)
        timing, stats = Timing(), Stats()
        reproducer = Reproducer(options.reproducer, command)
        instruments: list[Instrument] = [timing, stats, progress, reproducer]
        if options.print_ir_before or options.print_ir_after:
            known = list(passes())
            before, after = options.print_ir_before, options.print_ir_after
            instruments.append(Printing(before, after, known=known))
        if options.dump_dir is not None:
            instruments.append(Dump(options.dump_dir))
        if options.remarks is not None or options.verbose:
            instruments.append(Remarks.from_text(options.remarks or ""))
        if options.opt_bisect_limit is not None:
            instruments.append(Bisect(options.opt_bisect_limit))
        return cls(options, pipeline, output, progress, timing, stats, reproducer, instruments)

    def run(self) -> Result:
        """Read, trace, optimise. Raises EsperError."""
        from esper.optimization import optimize

        options = self.options
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        torch.manual_seed(options.seed)
        gate = self.gate()
        evaluate = None if options.eval is None else specs.make_evaluate(options.eval)
        finetune = None if options.finetune is None else specs.make_finetune(options.finetune)
        data = None if options.data is None else specs.make_data(options.data)
        assert options.input is not None
        source = Source(
            options.input,
            options.model,
            options.allow_pickle,
            options.inputs,
            options.dynamic,
            options.static,
            options.seed,
        )
        subject = read(source, self.progress)
        model, self.inputs = subject.model, subject.inputs
        self.notes += subject.notes
        model.pin(*options.pin or ())
        if self.output is not None:
            outputs.check_space(self.output.path, model.nbytes())
            if self.output.needs_inputs and self.inputs is None:
                raise UsageError(
                    f"writing {self.output.suffix} needs example inputs: give --inputs"
                )
        if finetune is not None:
            finetune = _guarded(finetune)
        return optimize(
            model,
            self.pipeline,
            gate=gate,
            inputs=None if self.inputs is None else self.inputs.timed,
            data=data,
            evaluate=evaluate,
            max_loss=str(specs.parse_max_loss(options.max_loss or "1%")),
            finetune=finetune,
            target_speedup=options.target_speedup,
            instruments=self.instruments,
            verify="full"
            if options.verify_each
            else "none"
            if options.no_verify
            else "incremental",
            seed=options.seed,
            progress=self._report,
        )

    def gate(self) -> Gate | None:
        """The gate that the options describe. Raises GateError."""
        from esper.gate.gate import Gate

        options = self.options
        if options.no_gate:
            return None
        return Gate(
            objective=options.objective or "inference",
            backend=options.backend or "auto",
            threads=options.threads,
            budget_seconds=options.budget_seconds or Gate.budget_seconds,
            seed=options.seed,
            device=options.device or "cpu",
        )

    def write(self, result: Result) -> list[str]:
        """Write the model and return sentences about it.

        Raises OutputError, and VerificationError or TargetError where no model is to be written.
        """
        self.reproducer.raise_if_failed()
        if self.options.strict:
            check_strict(result, self.options.target_speedup)
        if self.output is None:
            return []
        example = None if self.inputs is None else self.inputs.example
        with self.progress.task(f"writing {self.output.path}"):
            return outputs.write_output(result.model, self.output, example)

    def about_backend(self, result: Result) -> list[str]:
        """A sentence where nobody chose what was timed on: other backends may be faster."""
        chosen = self.options.backend not in (None, "auto")
        if chosen or "select-backend" in result.pipeline:
            return []
        if not any(judgement.verdict is not None for _, judgement in result.judgements):
            return []
        return [f"timed on {result.backend}; --passes=select-backend,... finds the fastest backend"]

    def write_records(self, result: Result) -> None:
        """Write `--records`. Raises OutputError."""
        if self.options.records is not None:
            lines = [record.model_dump_json() for record in result.records]
            outputs.write_text(self.options.records, "".join(line + "\n" for line in lines))

    def write_report(self, result: Result, command: str) -> None:
        """Write `--report`. Raises OutputError."""
        if self.options.report is None:
            return
        from esper.report.build import from_result
        from esper.report.html import render

        title = str(self.options.input)
        with self.progress.task("drawing the report"):
            page = render(
                from_result(
                    result,
                    title=title,
                    command=command,
                    timing=self.timing.seconds(),
                    notes=self.notes,
                )
            )
        outputs.write_text(self.options.report, page)

    def _report(self, done: int, total: int, what: str) -> None:
        self.progress.report(max(done, 0), max(total, 0), what)


def choose_pipeline(options: Options) -> Pipeline:
    """The pipeline of `--passes` or `-O`; `-O1` without either. Raises UsageError."""
    if options.passes is not None:
        return parse(options.passes)
    level = "O" + ("1" if options.level is None else options.level)
    return preset(level)


def check_strict(result: Result, target: float | None) -> None:
    """Raise TargetError unless the target (or without one, anything) was reached."""
    if target is None:
        if not result.committed:
            raise TargetError("no change was kept, and --strict asks for one; no model is written")
        return
    speedup = result.speedup
    if speedup is None or speedup < target:
        found = "was not measured" if speedup is None else f"is {speedup:.3f}x"
        raise TargetError(
            f"the speed-up {found}, and --strict asks for {target:g}x; no model is written"
        )


def _check_search(options: Options, pipeline: Pipeline) -> None:
    searches = _searches(pipeline)
    if searches and options.eval is None and options.data is None:
        raise UsageError(
            "searching needs a quality budget: give --eval FILE.py:fn, or --data FILE.py:fn to "
            "bound the drift of outputs"
        )
    if options.target_speedup is not None and not searches and not options.strict:
        raise UsageError(
            "--target-speedup needs something to search: use -O3 or "
            "'search(prune{ratio=0.1},reconstruct)', or --strict to only check it"
        )


def _check_format(output: outputs.Output | None, pipeline: Pipeline) -> None:
    lowering = [step.name for step in steps(pipeline.items) if step.lowers]
    if output is not None and output.suffix == ".onnx" and lowering:
        raise UsageError(
            f"{lowering[0]} puts in kernels, which ONNX does not have: write .pt2 or .esper, or "
            f"leave {lowering[0]} out"
        )


def _searches(pipeline: Pipeline) -> bool:
    return any(
        item.instance.searches or (item.inner is not None and _searches(item.inner))
        for item in pipeline.items
    )


def _guarded(finetune: Any) -> Any:
    return lambda model: call_user(finetune, "--finetune", model)
