"""Payloads of one decision, from what was seen to what came of it.

The causal chain is observation > mask > head-sample (each the cause of the next) > proposal >
resolved-config > verdict > rewrite > outcome. Together they are enough to decide again from the
recorded observation, and to send the recorded proposal through the pass manager again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import not_
from typing import Any, ClassVar

from esper.errors import UsageError
from esper.recorder.payload import Payload, Plain


@dataclass(frozen=True)
class Observation(Payload):
    """What an agent saw.

    Attributes:
        digest: of everything that it saw (`canonical.digest` of the values, or of tensors).
        values: the values themselves, by name, as the policy read them (float32 is kept exactly).
        schema_name: of the set of features, where there are several.
        tensors: name -> digest of what was put into the side directory instead.
        state: digest of what the policy remembers from earlier decisions, if it does.
    """

    kind: ClassVar[str] = "observation"

    digest: str
    values: Plain = field(default_factory=dict)
    schema_name: str = ""
    tensors: Mapping[str, str] = field(default_factory=dict)
    state: str = ""


@dataclass(frozen=True)
class HeadMask:
    """Which choices of one action head are allowed.

    Attributes:
        choices: names, in the order of the head's logits.
        allowed: one flag each.
        rules: one each: code of the contract rule that forbids the choice, "" where it is allowed.
    """

    choices: tuple[str, ...]
    allowed: tuple[bool, ...]
    rules: tuple[str, ...]

    def __post_init__(self) -> None:
        if not len(self.choices) == len(self.allowed) == len(self.rules):
            raise UsageError("choices, allowed and rules of a head must be equally long")
        if list(map(bool, self.rules)) != list(map(not_, self.allowed)):
            at = [bool(rule) != (not ok) for rule, ok in zip(self.rules, self.allowed, strict=True)]
            raise UsageError(
                f"choice {self.choices[at.index(True)]!r} needs a rule if it is masked, and none "
                "if it is allowed"
            )


@dataclass(frozen=True)
class Mask(Payload):
    """What each head may choose, and why not the rest.

    Attributes:
        heads: by name of the head.
        reasons: rule code -> one sentence for a person.
    """

    kind: ClassVar[str] = "mask"

    heads: Mapping[str, HeadMask]
    reasons: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class HeadSample(Payload):
    """One choice of one action head.

    Attributes:
        head: its name.
        choices: names, in the order of the logits.
        logits: before masking, so they are finite.
        mask: True where the choice was allowed.
        probabilities: after masking.
        entropy: of them, in nats.
        log_probability: of the choice, natural logarithm.
        chosen: index of the choice.
        generator: name of the random generator, "" if the choice was not random.
        cursor: how often it had been drawn from before this choice.
        given: what earlier heads chose, for a head that depends on them.
    """

    kind: ClassVar[str] = "head-sample"

    head: str
    choices: tuple[str, ...]
    logits: tuple[float, ...]
    mask: tuple[bool, ...]
    probabilities: tuple[float, ...]
    entropy: float
    log_probability: float
    chosen: int
    generator: str = ""
    cursor: int = 0
    given: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        lengths = {len(self.choices), len(self.logits), len(self.mask), len(self.probabilities)}
        if len(lengths) != 1:
            raise UsageError(
                f"choices, logits, mask and probabilities of head {self.head!r} must be equally "
                "long"
            )
        if not 0 <= self.chosen < len(self.choices):
            raise UsageError(f"head {self.head!r} has no choice number {self.chosen}")


@dataclass(frozen=True)
class Proposed(Payload):
    """A proposal as it was submitted.

    Attributes:
        proposal: all its fields (give the proposal itself; it is kept as plain data).
        rank: its place among those of this boundary.
        tensors: digest of the tensors that it brings along, "" if there are none.
    """

    kind: ClassVar[str] = "proposal"

    proposal: Any
    rank: int = 0
    tensors: str = ""


@dataclass(frozen=True)
class ResolvedConfig(Payload):
    """What was actually going to be applied, after defaults and limits.

    Attributes:
        blueprint, blend, curve, tempo, init, state_policy: "" where it means nothing.
        values: everything else that was resolved, such as steps of a ramp or a learning rate.
    """

    kind: ClassVar[str] = "resolved-config"

    blueprint: str = ""
    blend: str = ""
    curve: str = ""
    tempo: str = ""
    init: str = ""
    state_policy: str = ""
    values: Plain = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict(Payload):
    """What became of a proposal, as its `esper.records.Record` says.

    Attributes:
        result: passed, missed, failure or analysis (the record's kind).
        code: of the rule or outcome.
        reason: one sentence.
        remedy: what would help.
        node: graph node or ID at which it was decided.
        figures: numbers that were computed or measured.
        plan: digest of the plan, "" if there was none.
    """

    kind: ClassVar[str] = "verdict"

    result: str
    code: str
    reason: str
    remedy: str = ""
    node: str | None = None
    figures: Plain = field(default_factory=dict)
    plan: str = ""


@dataclass(frozen=True)
class Rewrite(Payload):
    """A change that was applied. All fields but `summary` are digests.

    `outline` is that of the plan without the values of tensors.
    """

    kind: ClassVar[str] = "rewrite"

    plan: str
    graph_before: str = ""
    graph_after: str = ""
    parameters_before: str = ""
    parameters_after: str = ""
    optimizer_before: str = ""
    optimizer_after: str = ""
    summary: str = ""
    outline: str = ""


@dataclass(frozen=True)
class Outcome(Payload):
    """What was later attributed to a decision.

    Attributes:
        metrics: by name, such as loss_change, step_time_ratio, reward.
        over: ticks between the decision and this judgement.
        method: how it was attributed: before-after, paired, counterfactual.
    """

    kind: ClassVar[str] = "outcome"

    metrics: Mapping[str, float]
    over: int = 0
    method: str = ""
