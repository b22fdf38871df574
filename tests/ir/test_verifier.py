"""Every check of the verifier fires on the fault it is for, and quotes the line."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from esper.errors import UsageError, VerificationError
from esper.ir.model import Model
from esper.ir.scope import Change
from esper.ir.verifier import SPECS, verify
from tests.ir.small import convolutions, perceptron

aten = torch.ops.aten


def _fault(model: Model, **options: Any) -> tuple[str, ...]:
    with pytest.raises(VerificationError) as caught:
        verify(model, **options)
    assert caught.value.problems
    assert caught.value.problems[0] in str(caught.value)
    return caught.value.problems


def _expect(problems: tuple[str, ...], pattern: str) -> None:
    assert any(re.search(pattern, problem) for problem in problems), "\n".join(problems)


@pytest.mark.parametrize("build", [perceptron, convolutions])
def test_traced_models_pass_every_stage_in_both_modes(build: Callable[[], Model]) -> None:
    for training in (False, True):
        model = build().train(training)
        for stage in SPECS:
            verify(model, stage)


def test_verifying_changes_nothing() -> None:
    model = perceptron()
    before = (str(model), model.code, model.identities.copy())
    verify(model)
    assert (str(model), model.code, model.identities) == before


def test_an_unknown_stage_is_refused() -> None:
    with pytest.raises(UsageError, match="no stage"):
        verify(perceptron(), "done")  # type: ignore[arg-type]


def test_order_fires_on_use_before_definition() -> None:
    model = perceptron()
    model.nodes["relu"].append(model.nodes["linear"])
    _expect(_fault(model), r"^order: %linear is used before it is computed: %relu = relu\(%linear")


def test_order_fires_on_equal_names() -> None:
    model = perceptron()
    model.nodes["relu"].name = "linear"
    _expect(_fault(model), r"^order: two nodes are called %linear: %linear = relu")


def test_order_fires_without_an_output() -> None:
    model = perceptron()
    model.graph.erase_node(model.nodes["output"])
    _expect(_fault(model), r"^order: the graph has 0 outputs")


def test_attributes_fires_on_a_dangling_read() -> None:
    model = perceptron()
    del model.get_submodule("up").weight
    _expect(_fault(model), r"^attributes: there is no up.weight: %\w+ = get_attr\(up.weight\)")


def test_lint_fires_on_what_torch_fx_refuses() -> None:
    model = perceptron()
    model.nodes["relu"].op = "call_nothing"
    _expect(_fault(model), r"^lint: .*call_nothing")


def test_metadata_fires_on_a_missing_value() -> None:
    model = perceptron()
    del model.nodes["relu"].meta["val"]
    _expect(_fault(model), r"^metadata: no value is recorded: %relu = relu\(%linear\)")


def test_metadata_fires_on_a_module_path_that_is_none() -> None:
    model = perceptron()
    model.nodes["relu"].meta["module"] = 3
    _expect(_fault(model), r"^metadata: the module path is no text: %relu")


def test_metadata_fires_on_a_literal_that_does_not_fit_the_mode() -> None:
    model = perceptron()
    node = model.nodes["dropout"]
    node.args = (node.args[0], node.args[1], True)
    _expect(_fault(model), r"^metadata: argument 2 is True, .*: %dropout = dropout")


def test_metadata_fires_on_modes_of_arguments_that_are_gone() -> None:
    model = perceptron()
    node = model.nodes["dropout"]
    node.meta["modes"] = {(7,): (False, True)}
    _expect(_fault(model), r"^metadata: modes name an argument that is not there: %dropout")


def test_shapes_fires_on_another_result() -> None:
    model = perceptron()
    model.nodes["relu"].meta["val"] = model.nodes["relu"].meta["val"][:, :, :4]
    _expect(_fault(model), r"^shapes: it computes float32\[s\d+, 5, 8\] on cpu: %relu = relu")


def test_shapes_fires_on_an_op_that_cannot_run() -> None:
    model = perceptron()
    node = model.nodes["linear_1"]
    node.args = (model.nodes["add"], *node.args[1:])
    _expect(_fault(model), r"^shapes: it cannot be computed \(.*\): %linear_1 = linear\(%add")


def test_shapes_fires_on_another_dtype() -> None:
    model = perceptron()
    model.nodes["relu"].meta["val"] = model.nodes["relu"].meta["val"].double()
    _expect(_fault(model), r"^shapes: it computes float32.*: %relu .*float64")


def test_shapes_looks_at_named_nodes_and_their_consumers_only() -> None:
    model = perceptron()
    _ = model.table
    node = model.nodes["relu"]
    node.meta["val"] = node.meta["val"].double()
    verify(model, change=Change(frozenset({"embedding"})))
    for name in ("relu", "linear"):
        fault = _fault(model, change=Change(frozenset({name})))
        _expect(fault, r"^shapes: it computes float32.*: %relu")
    computed = frozenset({"relu", "linear_1"})  # by the caller, who vouches for them
    verify(model, change=Change(frozenset({"relu"}), evaluated=computed))


def test_leaves_fires_while_training_only() -> None:
    model = perceptron()
    up = model.get_submodule("up")
    meta = torch.nn.Parameter(torch.empty(8, device="meta"))
    up.bias = meta
    _expect(_fault(model, stage="live"), r"^leaves: parameter up.bias has no memory")


def test_tensor_sizes_fires_on_a_tensor_cut_alone() -> None:
    model = perceptron()
    _ = model.table
    up = model.get_submodule("up")
    up.weight = torch.nn.Parameter(torch.zeros(7, 6))
    problems = _fault(model)
    _expect(problems, r"^tensor-sizes: up.weight is float32\[7, 6\], dim 0 should be 8: %linear =")
    _expect(problems, r"^shapes: ")


def test_tensor_sizes_fires_on_a_tensor_that_is_gone() -> None:
    model = perceptron()
    _ = model.table
    for node in list(model.nodes.values()):
        if node.op == "get_attr" and node.target == "offset":
            node.target = "up.bias"
    del model.offset
    _expect(_fault(model), r"^tensor-sizes: the axes know a tensor offset that the model has not")


def test_value_sizes_fires_on_a_value_with_another_size() -> None:
    model = perceptron()
    _ = model.table
    node = model.nodes["relu"]
    node.meta["val"] = node.meta["val"][:, :, :4]
    _expect(_fault(model), r"^value-sizes: it is float32\[s\d+, 5, 4\], dim 2 should be 8: %relu")


def test_literals_fires_on_a_size_that_was_not_corrected() -> None:
    model = convolutions()
    _ = model.table
    node = model.nodes["view"]
    node.args = (node.args[0], [-1, 50])
    _expect(
        _fault(model), r"^literals: argument \[1\]\[1\] is 50, the axes ask for 100: %view = view"
    )


def test_literals_fires_on_a_node_that_is_gone() -> None:
    model = convolutions()
    _ = model.table
    model.nodes["view"].name = "other"
    _expect(_fault(model), r"^literals: the axes know a node %view that the graph has not")


def _axis(model: Model) -> str:
    (name,) = model.find("*/neurons")
    return name


@pytest.mark.parametrize(
    ("units", "following", "pattern"),
    [
        ((0, 1, 2, 3, 4, 5, 6, 6), 8, r"has unit 6 twice"),
        ((0, 1, 2, 3, 4, 5, 6, 8), 8, r"has unit 8, and the next to be given out is 8"),
        ((0, 1, 2, 3, 4, 5, 6), 8, r"has 8 units and 7 unit numbers: %linear"),
    ],
)
def test_units_fires(units: tuple[int, ...], following: int, pattern: str) -> None:
    model = perceptron()
    identity = model.identities.axes[_axis(model)]
    identity.unit_ids, identity.next_unit = units, following
    _expect(_fault(model), rf"^units: axis:\S+/neurons {pattern}")


def test_units_fires_on_a_retired_id_that_lives() -> None:
    model = perceptron()
    model.identities.retired.add(_axis(model))
    _expect(_fault(model), r"^units: axis:\S+/neurons is both alive and retired")


def test_ports_fires_on_another_output() -> None:
    model = perceptron()
    output = model.nodes["output"]
    output.args = ((output.args[0][0], model.nodes["relu"]),)  # type: ignore[index]
    _expect(
        _fault(model),
        r"^ports: output was float32\[s\d+, 5, 6\], is float32\[s\d+, 5, 8\]: return \(",
    )


def test_ports_fires_on_another_input() -> None:
    model = perceptron()
    node = model.nodes["ids"]
    node.meta["val"] = node.meta["val"].int()
    _expect(_fault(model), r"^ports: input was ids: int64\S* 5\], is ids: int32.*: %ids = placeh")


def test_ports_fires_on_another_structure() -> None:
    model = perceptron()
    info = model.graph._codegen.pytree_info  # type: ignore[attr-defined]
    spec = torch.utils._pytree.tree_structure((0, 0))
    model.graph._codegen.pytree_info = info._replace(out_spec=spec)  # type: ignore[attr-defined]
    _expect(_fault(model), r"^ports: the structure of inputs or outputs changed: return")


def test_ports_fires_when_none_are_recorded() -> None:
    model = perceptron()
    model._data.ports = None
    _expect(_fault(model), r"^ports: none are recorded")


def test_ties_fires_on_an_untied_parameter() -> None:
    model = perceptron()
    head = model.get_submodule("head")
    head.weight = torch.nn.Parameter(model.get_parameter("embed.weight").detach().clone())
    _expect(_fault(model), r"^ties: (head|embed).weight is no longer (head|embed).weight")


def test_all_problems_are_listed() -> None:
    model = perceptron()
    for name in ("relu", "linear"):
        del model.nodes[name].meta["val"]
    assert len(_fault(model)) == 2


def test_a_failed_check_leaves_the_model_as_it_was() -> None:
    model = perceptron()
    model.nodes["relu"].meta["val"] = model.nodes["relu"].meta["val"].double()
    before = (copy.deepcopy(model.identities), model.code)
    _fault(model)
    assert (model.identities, model.code) == before
