"""What instruments are: observers of a run, never code inside passes or rewrites.

The manager holds one `Stack`. `before_*` hooks run in the order of the stack, `after_*` hooks in
reverse, as nested scopes do. An instrument that raises is named in a note on its error; while
another error is under way, the instrument's own error becomes a note on that one and hides nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:
    from esper.ir.model import Model
    from esper.passbase import Pass
    from esper.plan import Refusal
    from esper.propose import Proposal
    from esper.records import Record

Phase = Literal["propose", "plan", "apply", "verify", "gate", "quality"]


class Instrument:
    """Base of instruments: every hook does nothing until overridden.

    `pass_` is None for a proposal that no pass made (a person, an agent, a replayed log).
    Hooks must not change the model.
    """

    name: ClassVar[str] = "instrument"

    def enter(self, model: Model, pipeline: str) -> None:
        """A run starts; `pipeline` is its canonical text."""

    def exit(self, model: Model) -> None:
        """The run has ended, also after an error."""

    def before_pass(self, model: Model, pass_: Pass) -> None:
        """A pass starts."""

    def after_pass(self, model: Model, pass_: Pass, records: Sequence[Record]) -> None:
        """A pass has ended; `records` are those it led to."""

    def before_proposal(
        self, model: Model, pass_: Pass | None, proposal: Proposal
    ) -> Refusal | None:
        """A proposal is about to be planned. A returned refusal vetoes it."""
        return None

    def after_proposal(self, model: Model, pass_: Pass | None, record: Record) -> None:
        """A proposal was applied or refused, or a remark made. The gate may still undo it."""

    def settled(self, model: Model, record: Record) -> None:
        """The last word on a proposal or remark, after judgement."""

    def after_failure(self, model: Model, pass_: Pass | None, error: BaseException) -> None:
        """A pass or rewrite raised; the model has been rolled back."""

    def enter_phase(self, phase: Phase) -> None:
        """Work of one kind starts; phases may nest."""

    def exit_phase(self, phase: Phase) -> None:
        """Work of that kind has ended, also after an error."""


class Stack:
    """Several instruments as one; the only thing that the manager calls.

    Args:
        instruments: outermost first.
    """

    def __init__(self, instruments: Iterable[Instrument] = ()) -> None:
        self.instruments = tuple(instruments)

    @contextmanager
    def run(self, model: Model, pipeline: str = "") -> Iterator[None]:
        """Enter every instrument, and leave those that were entered whatever happens."""
        with self._scope(
            "enter",
            "exit",
            lambda i: i.enter(model, pipeline),
            lambda i: i.exit(model),
        ):
            yield

    @contextmanager
    def phase(self, phase: Phase) -> Iterator[None]:
        """Mark work of one kind."""
        with self._scope(
            "enter_phase",
            "exit_phase",
            lambda i: i.enter_phase(phase),
            lambda i: i.exit_phase(phase),
        ):
            yield

    def before_pass(self, model: Model, pass_: Pass) -> None:
        """Call `before_pass` of every instrument."""
        for instrument in self.instruments:
            with _named(instrument, "before_pass"):
                instrument.before_pass(model, pass_)

    def after_pass(self, model: Model, pass_: Pass, records: Sequence[Record]) -> None:
        """Call `after_pass` of every instrument, even if one raises."""
        self._unwind("after_pass", lambda i: i.after_pass(model, pass_, records))

    def before_proposal(
        self, model: Model, pass_: Pass | None, proposal: Proposal
    ) -> Refusal | None:
        """Ask every instrument; the first refusal wins, and the rest still see the proposal."""
        first: Refusal | None = None
        for instrument in self.instruments:
            with _named(instrument, "before_proposal"):
                refusal = instrument.before_proposal(model, pass_, proposal)
            first = refusal if first is None else first
        return first

    def after_proposal(self, model: Model, pass_: Pass | None, record: Record) -> None:
        """Call `after_proposal` of every instrument, even if one raises."""
        self._unwind("after_proposal", lambda i: i.after_proposal(model, pass_, record))

    def settled(self, model: Model, record: Record) -> None:
        """Call `settled` of every instrument, even if one raises."""
        self._unwind("settled", lambda i: i.settled(model, record))

    def after_failure(self, model: Model, pass_: Pass | None, error: BaseException) -> None:
        """Tell every instrument of `error`. Their own errors become notes on it."""
        self._unwind(
            "after_failure", lambda i: i.after_failure(model, pass_, error), original=error
        )

    @contextmanager
    def _scope(
        self,
        opening: str,
        closing: str,
        enter: Callable[[Instrument], None],
        leave: Callable[[Instrument], None],
    ) -> Iterator[None]:
        entered: list[Instrument] = []
        try:
            for instrument in self.instruments:
                with _named(instrument, opening):
                    enter(instrument)
                entered.append(instrument)
            yield
        except BaseException as error:
            self._unwind(closing, leave, original=error, instruments=entered)
            raise
        self._unwind(closing, leave, instruments=entered)

    def _unwind(
        self,
        hook: str,
        call: Callable[[Instrument], None],
        *,
        original: BaseException | None = None,
        instruments: Sequence[Instrument] | None = None,
    ) -> None:
        """Call in reverse order; the first error is kept, later ones become notes on it."""
        kept = original
        for instrument in reversed(self.instruments if instruments is None else instruments):
            try:
                with _named(instrument, hook):
                    call(instrument)
            except Exception as error:  # noqa: BLE001  an observer must not hide what it observes
                if kept is None:
                    kept = error
                else:
                    kept.add_note(f"then instrument {instrument.name} failed in {hook}: {error}")
        if kept is not None and original is None:
            raise kept


@contextmanager
def _named(instrument: Instrument, hook: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        error.add_note(f"raised by instrument {instrument.name} in {hook}")
        raise
