"""Each type of proposal, with one wrong field and one wrong target: a sentence, never a failure."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
from pydantic import ValidationError

import esper
from esper import propose
from esper.ir.model import Model
from tests.live.training import traced

AXIS, REGION, NODE, WEIGHT = "axis:block.0/neurons", "phage:block", "linear_1", "block.2.weight"
PROBE = {"outcome": "harmless", "change": 0.0, "batches": 9}
DRIFT = {"digest": "0", "drift_before": 1.0, "drift_after": 0.5}

# Type -> fields that mean nothing in the model, the code of the refusal; a field and a bad value.
WRONG: dict[str, tuple[dict[str, Any], str, str, Any]] = {
    "prune-units": ({"axis": AXIS, "units": [99]}, "unknown-unit", "units", []),
    "keep-vocabulary": (
        {"axis": "axis:none", "tokens": [1], "unknown": 0}, "unknown-target", "tokens", "all"
    ),
    "drop-region": ({"region": "phage:none"}, "unknown-target", "region", 3),
    "fuse-conv-bn": (
        {"convolution": "none", "batch_norm": "none"}, "unknown-target", "batch_norm", None
    ),
    "fold-constants": ({"nodes": ["none"]}, "unknown-target", "nodes", "none"),
    "eliminate-dead": ({"nodes": ["none"]}, "unknown-target", "nodes", "none"),
    "refit": ({"node": NODE, "digest": "0"}, "missing-payload", "digest", 3),
    "cast": ({"dtype": "bfloat16"}, "", "dtype", "int3"),
    "select-backend": ({"backend": "eager"}, "", "backend", "fast"),
    "widen-units": ({"axis": "axis:none", "count": 1}, "unknown-target", "count", 0),
    "sedate": ({"target": "phage:none"}, "unknown-target", "units", "all"),
    "wake": ({"target": REGION}, "not-sedated", "target", 3),
    "lyse": ({"target": "phage:none"}, "unknown-target", "units", "all"),
    "forget-scar": ({"slot": "slot:none"}, "no-scar", "slot", 3),
    "note-probe": ({"target": "phage:none", **PROBE}, "unknown-target", "change", float("nan")),
    "tend-ledger": ({"uses": {"phage:none": 1.0}}, "unknown-target", "uses", 3),
    "grant-lease": (
        {"target": "phage:none", "holder": "a", "until": 9}, "unknown-target", "holder", ""
    ),
    "merge-units": (
        {"axis": "axis:none", "units": [1], "into": [0]}, "unknown-target", "units", "all"
    ),
    "ramp-units": ({"axis": "axis:none", "alpha": 1.0}, "unknown-target", "alpha", 2.0),
    "deepen": ({"after": "none"}, "unknown-target", "after", 3),
    "resize-kernel": ({"node": NODE, "size": [3, 3]}, "no-convolution", "size", "large"),
    "stage-kernel": ({"node": NODE}, "no-convolution", "node", 3),
    "add-branch": ({"node": "relu"}, "no-layer", "node", 3),
    "plant-seed": ({"slot": "slot:none", "blueprint": "norm"}, "unknown-target", "blueprint", 3),
    "advance-seed": ({"slot": "slot:none", "to": "blending"}, "unknown-target", "to", "grown"),
    "cull-seed": ({"slot": "slot:none"}, "unknown-target", "slot", 3),
    "set-mask": (
        {"tensor": WEIGHT, "pattern": "2:4", "phage": "phage:none"}, "unknown-target",
        "density", 1.0,
    ),
    "regrow-mask": ({"tensor": WEIGHT}, "no-mask", "fraction", 0.0),
    "gate-cells": ({"tensor": WEIGHT}, "no-mask", "off", "all"),
    "clear-mask": ({"tensor": WEIGHT}, "no-mask", "tensor", 3),
    "fold-mask": ({"tensor": "none"}, "unknown-target", "tensor", 3),
    "low-rank-swap": ({"node": NODE, "rank": 99}, "no-shrink", "rank", 0),
    "merge-factors": ({"first": NODE, "second": NODE}, "not-a-pair", "second", 3),
    "merge-branches": ({"a": NODE, "b": NODE}, "no-sum", "how", "at once"),
    "distil": (DRIFT, "missing-payload", "drift_after", -1.0),
    "quantize-layers": ({"nodes": ["relu"]}, "no-weight", "mode", "int1"),
    "quantize-phage": ({"region": "phage:none"}, "unknown-target", "mode", "int1"),
    "dequantize-layers": ({"nodes": [NODE]}, "not-quantised", "nodes", []),
    "lower-linear": ({"node": "relu", "kernel": "int8_linear"}, "no-weight", "kernel", "fast"),
    "lower-gated-mlp": ({"node": NODE}, "no-gated-mlp", "rows", -1),
    "lower-low-rank": ({"node": NODE}, "no-low-rank-pair", "node", 3),
    "lower-attention-projections": ({"node": NODE}, "no-projections", "node", 3),
    "raise-kernel": ({"node": NODE}, "no-kernel", "node", 3),
}  # fmt: skip


@cache
def _traced() -> Model:
    return traced()


def test_each_type_is_here() -> None:
    assert set(WRONG) == set(propose._BUILT_IN)


@pytest.mark.parametrize("name", [name for name, (_, code, _, _) in WRONG.items() if code])
def test_a_wrong_target_is_refused_with_a_code(name: str) -> None:
    fields, code, _, _ = WRONG[name]
    model = copy.deepcopy(_traced())
    record = esper.PassManager(model).apply(propose.parse({"type": name, **fields}))
    assert (record.kind, record.code) == ("missed", code), record.line()
    assert record.reason
    assert "\n" not in record.reason
    assert str(model) == str(_traced())


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_field_is_named(name: str) -> None:
    fields, _, field, bad = WRONG[name]
    good = {"type": name, **fields}
    propose.parse(good)
    for wrong, where in (({**good, field: bad}, field), ({**good, "bogus": 1}, "bogus")):
        with pytest.raises(ValidationError) as caught:
            propose.parse(wrong)
        said = caught.value.errors()[0]
        assert where in (said["loc"] or ()) or str(bad) in said["msg"]
