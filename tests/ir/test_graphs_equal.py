"""Structural comparison."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from esper.ir.graphs_equal import graphs_equal
from esper.ir.model import Model
from tests.ir.small import convolutions, perceptron

aten = torch.ops.aten


def test_models_equal_their_copies_whatever_the_names() -> None:
    a = perceptron()
    b = copy.deepcopy(a)
    for number, node in enumerate(b.graph.nodes):
        node.name = f"n{number}"
    assert graphs_equal(a, b) is None
    assert graphs_equal(b, a) is None


def test_the_order_of_independent_nodes_does_not_matter() -> None:
    a, b = perceptron(), perceptron()
    reads = list(b.graph.find_nodes(op="get_attr"))
    b.nodes["ids"].append(reads[0])
    assert graphs_equal(a, b) is None


def _other_op(m: Model) -> None:
    m.nodes["relu"].target = aten.sigmoid.default


def _other_literal(m: Model) -> None:
    m.nodes["dropout"].args = (m.nodes["dropout"].args[0], 0.5, False)


def _other_operand(m: Model) -> None:
    m.nodes["linear"].replace_input_with(m.nodes["add"], m.nodes["embedding"])


def _other_tensor(m: Model) -> None:
    next(n for n in m.graph.nodes if n.target == "up.bias").target = "other.bias"
    m.add_module("other", torch.nn.Linear(6, 8))


def _other_shape(m: Model) -> None:
    m.nodes["relu"].meta["val"] = m.nodes["relu"].meta["val"][:, :, :3]


def _other_keyword(m: Model) -> None:
    m.nodes["relu"].kwargs = {"extra": 1}


def _other_mode(m: Model) -> None:
    del m.nodes["dropout"].meta["modes"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_other_op, "relu against sigmoid"),
        (_other_literal, "arguments differ: 0.25 against 0.5"),
        (_other_operand, "different parts|add against embedding|arguments"),
        (_other_tensor, "tensor up.bias against other.bias"),
        (_other_shape, r"8\] against float32\[s\d+, 5, 3\]"),
        (_other_keyword, "names"),
        (_other_mode, "training"),
    ],
)
def test_differences_are_told(change: Callable[[Model], Any], words: str) -> None:
    a, b = perceptron(), perceptron()
    change(b)
    difference = graphs_equal(a, b)
    assert difference is not None
    assert re.search(words, difference), difference
    assert graphs_equal(b, a) is not None


def test_other_inputs_and_silent_nodes_are_told() -> None:
    a = convolutions()
    assert graphs_equal(a, perceptron()) is not None
    trained = convolutions().train()
    assert graphs_equal(a, trained) == "0 nodes without readers against 1"
