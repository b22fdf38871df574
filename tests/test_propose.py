"""Other packages extend the vocabulary of proposals, under names of their own."""

from __future__ import annotations

from typing import Literal

import pytest
from pydantic import ValidationError

from esper import propose, register_axis_rule
from esper.errors import UsageError
from esper.ir.rules import REGISTRY
from esper.records import Record


class Other(propose.ProposalBase):
    """A proposal of another package."""

    type: Literal["other-change"] = "other-change"
    layer: str


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(propose, "_others", {})
    propose.register(Other)


@pytest.mark.usefixtures("registered")
def test_a_registered_type_survives_json_and_records() -> None:
    proposal = Other(layer="fc", evidence={"gain": 0.5})
    assert propose.parse(proposal.model_dump_json()) == proposal
    record = Record(kind="missed", code="no", reason="because", proposal=proposal)
    assert Record.model_validate_json(record.model_dump_json()) == record


def test_an_unregistered_type_is_refused() -> None:
    with pytest.raises(ValidationError, match="other-change"):
        propose.parse({"type": "other-change", "layer": "fc"})


@pytest.mark.usefixtures("registered")
def test_a_name_belongs_to_one_class() -> None:
    assert propose.register(Other) is Other

    class Again(Other):
        """Another class of the same type."""

    class Cut(propose.ProposalBase):
        type: Literal["prune-units"] = "prune-units"

    for cls in (Again, Cut):
        with pytest.raises(UsageError, match="is taken"):
            propose.register(cls)


def test_an_axis_rule_is_registered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(REGISTRY, "_rules", dict(REGISTRY._rules))
    register_axis_rule("some op", lambda r: r.of(r.arg(0)))
    with pytest.raises(UsageError, match="already registered"):
        register_axis_rule("some op", lambda r: r.of(r.arg(0)))
