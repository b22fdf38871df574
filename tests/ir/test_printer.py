"""Printed models."""

from __future__ import annotations

import copy
import re

import pytest

from esper.ir.printer import diff, print_model, print_node
from tests.ir.small import convolutions, perceptron
from tests.support import filecheck


def test_a_perceptron_prints_as_a_person_reads_it() -> None:
    filecheck(
        print_model(perceptron()),
        """
        CHECK: model in evaluation mode
        CHECK-NEXT: input %ids : int64[[[B:s[0-9]+]], 5]
        CHECK-NEXT: output %{{linear_2}} : float32[[[B]], 5, vocabulary:11]
        CHECK-NEXT: output %add_1 : float32[[[B]], 5, {{.*}}:6]
        CHECK: axes
        CHECK: axis:{{.*}}/neurons : 8
        CHECK: graph
        CHECK: embed:
        CHECK-NEXT: %embedding = embedding({{.*}}weight, %ids) : float32[[[B]], 5, {{.*}}:6]
        CHECK: up:
        CHECK-NEXT: %linear = linear(%add, w=up.weight, b=up.bias) : float32[[[B]], 5, neurons:8]
        CHECK: (root):
        CHECK-NEXT: %relu = relu(%linear) : float32[[[B]], 5, neurons:8]
        CHECK: drop:
        CHECK-NEXT: dropout(%linear_1, p=0.25, train=False) : {{.*}} ; switches train
        CHECK: return (%linear_2, %add_1)
        CHECK: tied tensors
        CHECK-NEXT: {{(head|embed)}}.weight is {{(head|embed)}}.weight
        """,
    )


def test_products_of_axes_are_shown_outer_first() -> None:
    filecheck(
        print_model(convolutions()),
        """
        CHECK: axis:conv/channels : 4
        CHECK: conv2d(%x, w=conv.weight, stride=[1, 1], padding=[1, 1]) : float32[{{.*}}channels:4
        CHECK: view(%relu, size=[-1, 100]) : float32[{{.*}}channels:4*{{.*}}]
        CHECK: unread tensors
        CHECK-NEXT: norm.num_batches_tracked
        """,
    )


def test_text_has_no_addresses_and_no_paths() -> None:
    for model in (perceptron(), convolutions()):
        assert not re.search(r"0x[0-9a-f]{6,}|/[a-z]+/", print_model(model).replace("axis:", ""))


def test_equal_models_print_equally_and_differ_in_nothing() -> None:
    model = perceptron()
    assert print_model(model) == print_model(copy.deepcopy(model)) == str(model)
    assert diff(model, copy.deepcopy(model)) == ""


def test_the_diff_shows_what_changed() -> None:
    before = perceptron()
    after = copy.deepcopy(before).train()
    filecheck(
        diff(before, after),
        """
        CHECK: -model in evaluation mode
        CHECK-NEXT: +model in training mode
        CHECK: -{{.*}}dropout(%linear_1, p=0.25, train=False)
        CHECK-NEXT: +{{.*}}dropout(%linear_1, p=0.25, train=True)
        """,
    )


def test_a_node_prints_without_a_new_analysis() -> None:
    model = perceptron()
    model.invalidate()
    node = model.nodes["linear"]
    assert re.fullmatch(
        r"%linear = linear\(%add, w=up.weight, b=up.bias\) : float32\[s\d+, 5, 8\]",
        print_node(model, node),
    )
    assert model.derived()[0] is None
    _ = model.table
    assert "neurons:8" in print_node(model, node)


@pytest.mark.parametrize("op", ["get_attr", "placeholder", "output"])
def test_every_kind_of_node_prints(op: str) -> None:
    model = perceptron()
    node = next(n for n in model.graph.nodes if n.op == op)
    line = print_node(model, node)
    assert line.startswith("return" if op == "output" else f"%{node.name} = {op}(")
