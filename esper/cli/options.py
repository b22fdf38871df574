"""The options of `esper-opt`: a dataclass whose fields are the options, and how they are read.

Nothing heavy is imported here, so `--help` and usage errors are quick.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, get_type_hints

import typer

from esper.cli.shell import INTERRUPTED
from esper.errors import UsageError

_MODEL = "Model and data"
_PASSES = "Passes"
_MEASURE = "Measuring"
_LOOK = "Looking inside"
_OUT = "Results"

#: Options whose value is optional, and what they mean without one.
_BARE = {
    "--print-ir-before": "--print-ir-before=all",
    "--print-ir-after": "--print-ir-after=all",
    "--remarks": "--remarks=",
}


def _flag(*names: str, help: str, panel: str) -> Any:  # noqa: A002
    return _option(*names, help=help, panel=panel, metavar=" ")


def _option(*names: str, help: str, panel: str, **more: Any) -> Any:  # noqa: A002
    return typer.Option(*names, help=help, rich_help_panel=panel, show_default=False, **more)


@dataclass(frozen=True)
class Options:
    """What the command line says, not yet checked against any file."""

    input: Annotated[
        str | None,
        typer.Argument(
            metavar="INPUT",
            show_default=False,
            help="A .pt2 or .esper file, a Hugging Face directory (config.json and safetensors), a "
            "state dict with --model, or - for standard input.",
        ),
    ] = None
    output: Annotated[
        str | None,
        _option(
            "-o",
            "--output",
            metavar="FILE",
            panel=_OUT,
            help="Write the result: .pt2, .onnx, .esper or .aoti.pt2. Without it, none.",
        ),
    ] = None

    model: Annotated[
        str | None,
        _option(
            "--model",
            metavar="FILE.py:FN",
            panel=_MODEL,
            help="Function that returns the module a state dict belongs to (or package.module:fn).",
        ),
    ] = None
    allow_pickle: Annotated[
        bool,
        _flag(
            "--allow-pickle",
            panel=_MODEL,
            help="Unpickle INPUT. A pickle can run any code: only for files you trust.",
        ),
    ] = False
    inputs: Annotated[
        str | None,
        _option(
            "--inputs",
            metavar="FILE.py:FN|SPEC",
            panel=_MODEL,
            help="Example inputs: a function returning (args, kwargs), or "
            "input_ids=int64[8,64]:30000,mask=int64[8,64]:2.",
        ),
    ] = None
    dynamic: Annotated[
        str | None,
        _option(
            "--dynamic",
            metavar="NAME:DIM,...",
            panel=_MODEL,
            help="Further dynamic dimensions; the batch dimension is one by default.",
        ),
    ] = None
    static: Annotated[
        bool, _flag("--static", panel=_MODEL, help="No dynamic dimension, nor the batch.")
    ] = False
    data: Annotated[
        str | None,
        _option(
            "--data",
            metavar="FILE.py:FN",
            panel=_MODEL,
            help="Calibration batches: a function returning an iterable of (args, kwargs).",
        ),
    ] = None
    eval: Annotated[
        str | None,
        _option(
            "--eval",
            metavar="FILE.py:FN",
            panel=_MODEL,
            help="Quality: fn(module) -> float, higher is better.",
        ),
    ] = None
    max_loss: Annotated[
        str | None,
        _option(
            "--max-loss",
            metavar="1%|0.5",
            panel=_MODEL,
            help="Largest loss of quality, relative (1%) or absolute (0.5). Default 1%; "
            "without --eval it bounds the drift of outputs on --data.",
        ),
    ] = None
    finetune: Annotated[
        str | None,
        _option(
            "--finetune",
            metavar="FILE.py:FN",
            panel=_MODEL,
            help="fn(module), called after lossy changes and before they are judged.",
        ),
    ] = None

    passes: Annotated[
        str | None,
        _option(
            "-p",
            "--passes",
            metavar="PIPELINE",
            panel=_PASSES,
            help="Passes in order, such as 'fold-constants,prune{ratio=0.3},reconstruct'.",
        ),
    ] = None
    level: Annotated[
        str | None,
        _option(
            "-O",
            metavar="0..3",
            panel=_PASSES,
            help="-O1: exact rewrites and backend choice (the default). -O2: plus casts and int8. "
            "-O3: plus structure, searched within the quality budget.",
        ),
    ] = None
    pin: Annotated[
        list[str] | None,
        _option(
            "--pin",
            metavar="GLOB",
            panel=_PASSES,
            help="Keep the axes and regions whose IDs match, as esper inspect prints them; may be "
            "given several times.",
        ),
    ] = None
    target_speedup: Annotated[
        float | None,
        _option(
            "--target-speedup",
            metavar="X",
            panel=_PASSES,
            help="The search stops at the smallest cut that reaches this speed-up.",
        ),
    ] = None
    seed: Annotated[
        int, _option("--seed", metavar="N", panel=_PASSES, help="For every random choice.")
    ] = 0
    verify_each: Annotated[
        bool,
        _flag(
            "--verify-each",
            panel=_PASSES,
            help="Verify the whole graph around every rewrite, not only what it touches.",
        ),
    ] = False
    no_verify: Annotated[bool, _flag("--no-verify", panel=_PASSES, help="Verify nothing.")] = False
    opt_bisect_limit: Annotated[
        int | None,
        _option(
            "--opt-bisect-limit",
            metavar="N",
            panel=_PASSES,
            help="Refuse proposals after the Nth; -1 only numbers them.",
        ),
    ] = None
    reproducer: Annotated[
        str | None,
        _option(
            "--reproducer",
            metavar="DIR",
            panel=_PASSES,
            help="Where a rewrite that breaks is saved with the model as it was before it. "
            "Default: esper-reproducer.",
        ),
    ] = None
    run_reproducer: Annotated[
        str | None,
        _option(
            "--run-reproducer",
            metavar="FILE",
            panel=_PASSES,
            help="Run the reproducer.json of such a directory again, and nothing else.",
        ),
    ] = None
    strict: Annotated[
        bool,
        _flag(
            "--strict",
            panel=_PASSES,
            help="Exit 6 and write no model when --target-speedup was not reached or, without "
            "one, when no change was kept.",
        ),
    ] = False

    no_gate: Annotated[
        bool, _flag("--no-gate", panel=_MEASURE, help="Apply changes without measuring time.")
    ] = False
    objective: Annotated[
        Literal["inference", "training"] | None,
        _option("--objective", panel=_MEASURE, help="Which step is timed. Default: inference."),
    ] = None
    backend: Annotated[
        Literal["auto", "eager", "inductor", "onnxruntime", "openvino"] | None,
        _option(
            "--backend",
            panel=_MEASURE,
            help="Where it is timed; auto (the default): what select-backend finds fastest, and "
            "eager where --passes do not have it.",
        ),
    ] = None
    device: Annotated[
        Literal["cpu", "cuda"] | None,
        _option("--device", panel=_MEASURE, help="Where it is timed. Default: cpu."),
    ] = None
    threads: Annotated[
        int | None,
        _option("--threads", metavar="N", panel=_MEASURE, help="Threads of every step."),
    ] = None
    budget_seconds: Annotated[
        float | None,
        _option(
            "--budget-seconds",
            metavar="N",
            panel=_MEASURE,
            help="Longest time for one comparison. Default: 80.",
        ),
    ] = None

    version: Annotated[
        bool, _flag("--version", panel=_LOOK, help="Print the version and stop.")
    ] = False
    list_passes: Annotated[
        bool, _flag("--list-passes", panel=_LOOK, help="List the passes and stop.")
    ] = False
    describe: Annotated[
        str | None,
        _option("--describe", metavar="PASS", panel=_LOOK, help="Explain a pass and stop."),
    ] = None
    schema: Annotated[
        bool,
        _flag(
            "--schema", panel=_LOOK, help="Print the JSON schema of proposals and records and stop."
        ),
    ] = False
    print_pipeline: Annotated[
        bool,
        _flag("--print-pipeline", panel=_LOOK, help="Print the pipeline in full and stop."),
    ] = False
    print_ir_before: Annotated[
        str | None,
        _option(
            "--print-ir-before",
            metavar="[=PASS|all|change]",
            panel=_LOOK,
            help="Print the graph before passes.",
        ),
    ] = None
    print_ir_after: Annotated[
        str | None,
        _option(
            "--print-ir-after",
            metavar="[=PASS|all|change]",
            panel=_LOOK,
            help="Print the graph after passes.",
        ),
    ] = None
    dump_dir: Annotated[
        str | None,
        _option(
            "--dump-dir",
            metavar="DIR",
            panel=_LOOK,
            help="Write the graph after each pass to DIR/000_PASS.txt and so on.",
        ),
    ] = None
    time_passes: Annotated[
        bool, _flag("--time-passes", panel=_LOOK, help="Say where the time went.")
    ] = False
    stats: Annotated[bool, _flag("--stats", panel=_LOOK, help="Count what each pass led to.")] = (
        False
    )
    remarks: Annotated[
        str | None,
        _option(
            "--remarks",
            metavar="[=KIND|...][,REGEX]",
            panel=_LOOK,
            help="One line for each decision as it is made. Kinds: passed, missed, failure, "
            "analysis.",
        ),
    ] = None

    records: Annotated[
        str | None,
        _option("--records", metavar="FILE.jsonl", panel=_OUT, help="Write every record."),
    ] = None
    report: Annotated[
        str | None,
        _option("--report", metavar="FILE.html", panel=_OUT, help="Write a page with figures."),
    ] = None
    json: Annotated[
        bool, _flag("--json", panel=_OUT, help="Print one JSON object instead of tables.")
    ] = False
    progress: Annotated[
        Literal["auto", "never"] | None,
        _option("--progress", panel=_OUT, help="Show what takes long, on a terminal (auto)."),
    ] = None
    quiet: Annotated[bool, _flag("-q", "--quiet", panel=_OUT, help="Print errors only.")] = False
    verbose: Annotated[
        bool, _flag("-v", "--verbose", panel=_OUT, help="Print every decision and tracebacks.")
    ] = False

    def check(self) -> None:
        """Raise UsageError for options that contradict or need one another."""
        for first, second in (
            ("passes", "level"),
            ("static", "dynamic"),
            ("verify_each", "no_verify"),
            ("quiet", "verbose"),
            ("quiet", "json"),
        ):
            if self.has(first) and self.has(second):
                raise UsageError(f"{_name(first)} and {_name(second)} exclude one another")
        if self.no_gate:
            timed = ("objective", "backend", "device", "budget_seconds", "target_speedup")
            for name in timed:
                if self.has(name):
                    raise UsageError(f"{_name(name)} is for measuring, which --no-gate turns off")
        if self.max_loss is not None and self.eval is None and self.data is None:
            raise UsageError("--max-loss needs something to judge by: give --eval or --data")
        for name, least in (("threads", 1), ("seed", 0), ("opt_bisect_limit", -1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"{_name(name)} must be at least {least}, not {value}")
        for name in ("target_speedup", "budget_seconds"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise UsageError(f"{_name(name)} must be a positive number, not {value:g}")

    def has(self, name: str) -> bool:
        """Whether an option was given."""
        return getattr(self, name) not in (None, False)


def parse(argv: Sequence[str]) -> Options | None:
    """Read the command line; None when it asked for help, which has been printed.

    Raises UsageError, naming the nearest option for an unknown one.
    """
    found: list[Options] = []
    app = make_app("esper-opt", _command(Options, found.append))
    if run_app(app, "esper-opt", [_BARE.get(word, word) for word in argv]):
        return None
    found[0].check()
    return found[0]


def make_app(name: str, *commands: Callable[..., Any]) -> typer.Typer:
    """A typer application that raises errors instead of printing them."""
    app = typer.Typer(
        name=name,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for command in commands:
        app.command()(command)
    return app


def run_app(app: typer.Typer, name: str, argv: Sequence[str]) -> bool:
    """Run the application; True when it printed help instead.

    Raises:
        UsageError: the words are none of its.
        KeyboardInterrupt: a command was interrupted.
    """
    import difflib

    command = typer.main.get_command(app)
    try:
        code = command.main(list(argv), prog_name=name, standalone_mode=False)
    except Exception as error:
        message = getattr(error, "format_message", None)
        if message is None:
            raise
        wrong = getattr(error, "option_name", None)
        if wrong is None or "possibilities" not in vars(error):
            text = " ".join(str(message()).split()).rstrip(".")
            raise UsageError(f"{text[:1].lower()}{text[1:]}; see {name} --help") from error
        context = getattr(error, "ctx", None)
        owner = context.command if context is not None else command
        known = [o for p in owner.params for o in p.opts if o.startswith("--")]
        close = difflib.get_close_matches(wrong, known, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}?" if close else f"see {name} --help"
        raise UsageError(f"there is no option {wrong}; {hint}") from error
    if code == INTERRUPTED:  # how typer answers what was raised inside
        raise KeyboardInterrupt
    return bool(code == 0)


def _command(cls: type[Any], receive: Callable[[Any], None]) -> Callable[..., None]:
    """A function whose parameters are the fields of a dataclass, as typer wants it."""
    hints = get_type_hints(cls, include_extras=True)

    def command(**values: Any) -> None:
        """Make a model faster: check, apply, verify and measure changes, and keep what pays."""
        receive(cls(**values))

    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.default,
                annotation=hints[field.name],
            )
            for field in fields(cls)
        ]
    )
    command.__annotations__ = {field.name: hints[field.name] for field in fields(cls)}
    return command


def _name(field: str) -> str:
    return {"passes": "--passes", "level": "-O"}.get(field, "--" + field.replace("_", "-"))
