"""What lives where: the stages of slots and the immune ledger, as plain data with a clock.

The model carries it, because a stage belongs to a part as its ID does: it follows copies, files
and rollbacks. Nothing here decides; contract rules read it (`esper.ecology`), plans change it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

Stage = Literal["dormant", "incubating", "blending", "holding", "committed", "quarantined"]
Algorithm = Literal["add", "multiply", "gated", "replace"]
Curve = Literal["linear", "cosine", "sigmoid"]
Outcome = Literal["harmful", "harmless", "undecided"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    def text(self) -> str:
        """Deterministic text of what is not at its default."""
        return self.model_dump_json(exclude_defaults=True)


class Blend(_Frozen):
    """How a seed comes into the host, or leaves it.

    Attributes:
        algorithm: add `x + alpha * f(x)`, multiply `x * (1 + alpha * f(x))`, gated
            `x + alpha * sigmoid(g) * f(x)` with a learned gate g per channel, replace
            `p(u) + alpha * (s(u) - p(u))`: the seed s takes the place of the phage p at whose
            output the slot is, and reads what p reads.
        curve: how alpha runs from `start` to `end`.
        ticks: boundaries that it takes.
        steepness: of the sigmoid.
    """

    algorithm: Algorithm = "add"
    curve: Curve = "linear"
    ticks: int = Field(default=20, ge=1)
    steepness: float = Field(default=6.0, gt=0)
    start: float = Field(default=0.0, ge=0, le=1)
    end: float = Field(default=1.0, ge=0, le=1)


class Scar(_Frozen):
    """What is remembered where something was removed.

    Attributes:
        since: tick of the removal; `scar_age` is the clock minus it.
        last_removed_blueprint: what was there.
        probe_outcome_summary: on which evidence it went, in one sentence.
        figures: numbers behind that sentence.
    """

    since: int
    last_removed_blueprint: str
    probe_outcome_summary: str
    figures: Mapping[str, float] = Field(default_factory=dict)


class SlotLife(_Frozen):
    """The stage of a slot and of the seed in it.

    Attributes:
        slot_kind: SEED, or SCAR where something was removed.
        stage, since: present stage and the tick at which it began.
        blueprint, options: what was planted.
        seed: module path under which the seed's tensors live.
        input: name of the node whose value the host computes at the slot.
        output: name of the node that gives the blended value to the host's readers.
        entry: name of the node that detaches what the seed reads, while it trains behind the host.
        alpha: name of the buffer that holds alpha.
        blend: how alpha moves.
        planted: how many seeds were planted here; numbers are never reused.
        culled: blueprints of the latest seeds that were culled here, oldest first.
        quarantine_until: no seed before that tick.
        scar: what was removed here.
    """

    kind: Literal["slot"] = "slot"
    slot_kind: Literal["SEED", "SCAR"] = "SEED"
    stage: Stage = "dormant"
    since: int = 0
    blueprint: str = ""
    options: Mapping[str, Any] = Field(default_factory=dict)
    seed: str = ""
    input: str = ""
    output: str = ""
    entry: str = ""
    alpha: str = ""
    blend: Blend | None = None
    planted: int = 0
    culled: tuple[str, ...] = ()
    quarantine_until: int = 0
    scar: Scar | None = None


class Antibody(_Frozen):
    """Remembered harm of touching a target; its weight halves every `half_life` ticks.

    `against` is the proposal type that did the harm; empty: any change.
    """

    tick: int
    harm: float
    half_life: float = 200.0
    against: str = ""


class Finding(_Frozen):
    """What a probe found.

    Attributes:
        tick: when it ended.
        outcome: harmful or harmless as the stopping rule decided, else undecided.
        change: mean change of the loss under sedation; higher is worse.
        error: standard error of that mean.
        batches: on how many held-out batches it rests.
        units: birth numbers that were sedated together; empty for a whole target.
    """

    tick: int
    outcome: Outcome
    change: float
    error: float = 0.0
    batches: int = 0
    units: tuple[int, ...] = ()

    def sentence(self) -> str:
        """`harmless at tick 40: loss +0.0003 (standard error 0.0002) on 21 batches`."""
        return (
            f"{self.outcome} at tick {self.tick}: loss {self.change:+.4g} "
            f"(standard error {self.error:.2g}) on {self.batches} batches"
        )


class Immunity(_Frozen):
    """The immune ledger's page of one target: a phage, an axis, a slot, or one unit `axis:...[7]`.

    Attributes:
        debt: rent due that its use has not paid, in units of the loss times ticks.
        settled: tick up to which rent was reckoned.
        antibodies: harm of past attempts.
        critical_until: criticality lock: nobody probes or removes the target before that tick.
        cooldown_until: nobody changes the target before that tick.
        lease_holder, lease_until: who alone may touch the target until then.
        probes: latest findings, oldest first.
        gates: gates that are in the graph while the target is sedated, each with the node for
            which it stands; empty while it is awake.
    """

    kind: Literal["immunity"] = "immunity"
    debt: float = 0.0
    settled: int = 0
    antibodies: tuple[Antibody, ...] = ()
    critical_until: int = 0
    cooldown_until: int = 0
    lease_holder: str = ""
    lease_until: int = 0
    probes: tuple[Finding, ...] = ()
    gates: tuple[tuple[str, str], ...] = ()

    @property
    def sedated(self) -> bool:
        """Whether gates hold the target at present."""
        return bool(self.gates)


class Terms(_Frozen):
    """What growth and decay keep to, as plain data of the model. Lengths are in ticks.

    Attributes:
        cooldown: rest of a target after each change; 0: none.
        quarantine: of a scar, before which no seed is planted on it.
        evidence_age: how old the harmless probe behind a lysis may be.
        evidence_batches: on how many batches it must rest.
        lock, lock_growth, lock_most: a harmful probe locks its target for `lock` ticks, times
            `lock_growth` for each harmful one before it that is remembered, at most `lock_most`.
        antibodies: weight from which on a change that did harm is refused when it comes again.
        half_life: of new antibodies, and of what a probe says about a target's use.
        scars: how many there may be at a time.
        scar_rent, scar_ramp: rent of a scar per tick once it is `scar_ramp` old; less before.
        scar_expiry: age at which a scar may be forgotten.
        parameter_price, flop_price: rent per tick, in units of the loss, of a target that holds
            all parameters, and of one that does all multiply-accumulates.
        rent_ramp: age at which a committed seed pays its full rent.
        debt_limit: debt from which on a target may not grow.
    """

    cooldown: int = Field(default=0, ge=0)
    quarantine: int = Field(default=50, ge=0)
    evidence_age: int = Field(default=50, ge=0)
    evidence_batches: int = Field(default=8, ge=1)
    lock: int = Field(default=100, ge=0)
    lock_growth: float = Field(default=2.0, ge=1)
    lock_most: int = Field(default=3200, ge=0)
    antibodies: float = Field(default=0.5, gt=0)
    half_life: float = Field(default=200.0, gt=0)
    scars: int = Field(default=8, ge=0)
    scar_rent: float = Field(default=0.001, ge=0)
    scar_ramp: int = Field(default=200, ge=1)
    scar_expiry: int = Field(default=1000, ge=0)
    parameter_price: float = Field(default=0.01, ge=0)
    flop_price: float = Field(default=0.01, ge=0)
    rent_ramp: int = Field(default=100, ge=1)
    debt_limit: float = Field(default=1.0, gt=0)


class Sparsity(_Frozen):
    """The mask of a weight, `mask:<tensor>`; the mask itself is a buffer of the model.

    Attributes:
        tensor: name of the weight.
        mask: name of the buffer: true where the weight counts.
        pattern: as in `esper.ir.patterns`.
        density: share of blocks that are on; of no meaning for N:M.
        dim: the weight's dim along which groups run.
        owner: ID of the innermost phage that reads the weight; empty where none does.
        since: tick at which it was set.
        regrown: how many times it was regrown.
    """

    kind: Literal["sparsity"] = "sparsity"
    tensor: str
    mask: str
    pattern: str
    density: float = 0.5
    dim: int = 1
    owner: str = ""
    since: int = 0
    regrown: int = 0


#: Stages in which a seed stands in its slot.
PLANTED: tuple[Stage, ...] = ("incubating", "blending", "holding", "committed")


Life = Annotated[SlotLife | Immunity | Sparsity, Field(discriminator="kind")]
_ADAPTER: TypeAdapter[SlotLife | Immunity | Sparsity] = TypeAdapter(Life)


def page_of(name: str) -> str:
    """The ID under which a target's page of the ledger is kept: a slot's own holds its stage."""
    if name.startswith("slot:") and not name.endswith("/immunity"):
        return f"{name}/immunity"
    return name


class Ecology:
    """All lives of a model by ID, the clock (one tick a boundary), and the terms."""

    def __init__(
        self,
        lives: Mapping[str, SlotLife | Immunity | Sparsity] | None = None,
        tick: int = 0,
        terms: Terms | None = None,
    ) -> None:
        self.lives: dict[str, SlotLife | Immunity | Sparsity] = dict(lives or {})
        self.tick = tick
        self.terms = terms or Terms()

    def slot(self, name: str) -> SlotLife:
        """The life of a slot; dormant where nothing is known."""
        life = self.lives.get(name)
        return life if isinstance(life, SlotLife) else SlotLife()

    def immunity(self, name: str) -> Immunity:
        """The ledger's page of a target; empty where nothing is known."""
        life = self.lives.get(page_of(name))
        return life if isinstance(life, Immunity) else Immunity()

    def pages(self) -> dict[str, Immunity]:
        """Pages of the ledger on which something is written, by the ID that they are kept under."""
        return {name: life for name, life in self.lives.items() if isinstance(life, Immunity)}

    def slots(self) -> dict[str, SlotLife]:
        """Slots of which something is known."""
        return {name: life for name, life in self.lives.items() if isinstance(life, SlotLife)}

    def sparsity(self) -> dict[str, Sparsity]:
        """Masks by the name of their weight; some may be gone with the weight."""
        lives = self.lives.values()
        return {life.tensor: life for life in lives if isinstance(life, Sparsity)}

    def set(self, name: str, life: SlotLife | Immunity | Sparsity | None) -> None:
        """Change one life; None forgets it."""
        if life is None:
            self.lives.pop(name, None)
        else:
            self.lives[name] = life

    def copy(self) -> Ecology:
        """Independent copy (lives themselves never change)."""
        return Ecology(self.lives, self.tick, self.terms)

    def data(self) -> dict[str, Any]:
        """Plain data for files and checkpoints."""
        lives = {
            name: life.model_dump(mode="json", exclude_defaults=True) | {"kind": life.kind}
            for name, life in sorted(self.lives.items())
        }
        terms = self.terms.model_dump(mode="json", exclude_defaults=True)
        return {"tick": self.tick, "lives": lives, **({"terms": terms} if terms else {})}

    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> Ecology:
        """From `data()`. Raises pydantic.ValidationError."""
        lives = {
            str(name): _ADAPTER.validate_python(value) for name, value in data["lives"].items()
        }
        return cls(lives, int(data["tick"]), Terms.model_validate(data.get("terms", {})))
