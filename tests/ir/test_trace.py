"""Tracing: the model behaves as the module did, in both modes, and the module is not changed."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the customary name
from torch.utils import _pytree as pytree

import esper
from esper.errors import TraceError
from esper.ir.model import Model
from tests.models import MODELS


def both(model: nn.Module, module: nn.Module, *args: Any, **kwargs: Any) -> None:
    """Equal outputs from equal random states."""
    results = []
    for each in (model, module):
        torch.manual_seed(11)
        results.append(each(*args, **kwargs))
    assert type(results[0]) is type(results[1])
    left, right = map(pytree.tree_leaves, results)
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        if isinstance(b, Tensor):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
        else:
            assert a == b


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        torch.testing.assert_close(tensor, b[name], rtol=1e-12, atol=1e-12, msg=name)


# -- signature -----------------------------------------------------------------------------------


class Pair(NamedTuple):
    total: Tensor
    extra: Tensor


class Signature(nn.Module):
    """Positional, keyword and default arguments; a dictionary in, a nested structure out."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(
        self, x: Tensor, pair: dict[str, Tensor], *, scale: Tensor | None = None, flag: bool = False
    ) -> dict[str, Any]:
        y = self.fc(x) + pair["a"] - pair["b"]
        if scale is not None:
            y = y * scale
        if flag:
            y = -y
        return {"y": y, "nested": [Pair(y + 1, x), (y * 2,)], "none": None}


def signature_inputs(batch: int = 3) -> tuple[tuple[Any, ...], dict[str, Any]]:
    x = torch.randn(batch, 4, dtype=torch.float64)
    pair = {name: torch.randn(batch, 3, dtype=torch.float64) for name in "ab"}
    return (x, pair), {"scale": torch.randn(batch, 1, dtype=torch.float64), "flag": True}


def test_call_signature_and_pytrees_are_kept() -> None:
    module = Signature().double().eval()
    args, kwargs = signature_inputs()
    model = esper.trace(module, args, kwargs)
    both(model, module, *args, **kwargs)
    args, kwargs = signature_inputs(batch=7)
    both(model, module, *args, **kwargs)
    out = model(*args, **kwargs)
    assert isinstance(out["nested"][0], Pair)
    assert out["none"] is None


def test_keywords_may_be_given_in_another_order_than_traced() -> None:
    class Two(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a - 2 * b

    a, b = torch.randn(3, 2), torch.randn(3, 2)
    model = esper.trace(Two(), (), {"a": a, "b": b})
    torch.testing.assert_close(model(b=b, a=a), a - 2 * b)


def test_variadic_arguments() -> None:
    class Many(nn.Module):
        def forward(self, first: Tensor, *rest: Tensor) -> Tensor:
            return first + sum(rest)

    inputs = tuple(torch.randn(3, 2, dtype=torch.float64) for _ in range(3))
    model = esper.trace(Many(), inputs)
    both(model, Many(), *(torch.cat([t, t]) for t in inputs))


def test_keywords_that_are_taken_up_together() -> None:
    class Keywords(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor, **others: Tensor) -> Tensor:
            scaled: Tensor = self.layer(x) * others["scale"]
            return scaled + others["shift"]

    module = Keywords().eval()
    x, *others = (torch.randn(3, 5, 4) for _ in range(3))
    kwargs = dict(zip(("scale", "shift"), others, strict=True))
    model = esper.trace(module, (x,), kwargs, dynamic={"scale": (1,), "x": (1,), "shift": (1,)})
    assert list(inspect.signature(module.forward).parameters) == ["x", "others"]
    assert "forward" not in vars(module)
    both(model, module, x, **kwargs)
    longer = {name: torch.randn(2, 7, 4) for name in kwargs}
    both(model, module, torch.randn(2, 7, 4), **longer)
    with pytest.raises(TraceError, match="no input is called 'others'; the inputs are x, scale"):
        esper.trace(module, (x,), kwargs, dynamic={"others": (1,)})


# -- tensors -------------------------------------------------------------------------------------


class Tied(nn.Module):
    """A head tied to the embedding, a frozen parameter, a hidden and an unused buffer."""

    hidden: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 4)
        self.head = nn.Linear(4, 9, bias=False)
        self.head.weight = self.embed.weight
        self.scale = nn.Parameter(torch.rand(4), requires_grad=False)
        self.register_buffer("hidden", torch.rand(4), persistent=False)
        self.register_buffer("unused", torch.arange(3))

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.head(self.embed(ids) * self.scale + self.hidden)
        return out


def test_names_ties_and_kinds_of_tensors_are_kept() -> None:
    module = Tied().double().eval()
    ids = torch.randint(0, 9, (3, 5))
    model = esper.trace(module, (ids,))
    both(model, module, ids)
    assert model.get_submodule("head").weight is model.get_submodule("embed").weight
    assert list(model.state_dict()) == list(module.state_dict())
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in module.named_parameters()]
    assert not dict(model.named_parameters())["scale"].requires_grad
    assert model.canonical_names()["head.weight"] == "embed.weight"
    module.load_state_dict(model.state_dict())  # and back


def test_the_model_owns_its_tensors() -> None:
    module = nn.Linear(3, 2)
    model = esper.trace(module, (torch.randn(4, 3),))
    with torch.no_grad():
        model.tensor("weight").zero_()  # type: ignore[union-attr]
    assert module.weight.abs().sum() > 0


@pytest.mark.parametrize("training", [False, True])
def test_the_module_is_not_changed(training: bool) -> None:
    module = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.Dropout(0.5)).train(training)
    module[1].eval()  # modes may differ within a module
    before = state(module)
    modes = [m.training for m in module.modules()]
    objects = [id(p) for p in module.parameters()]
    esper.trace(module, (torch.randn(2, 2, 4, 4),))
    same(state(module), before)
    assert [m.training for m in module.modules()] == modes
    assert [id(p) for p in module.parameters()] == objects
    assert all(p.grad is None for p in module.parameters())


def test_gradients_equal_those_of_the_module() -> None:
    module = Tied().double()
    ids = torch.randint(0, 9, (3, 5))
    model = esper.trace(module, (ids,))
    for each in (model, module):
        each(ids).square().sum().backward()
    for (name, mine), theirs in zip(model.named_parameters(), module.parameters(), strict=True):
        if theirs.grad is None:
            assert mine.grad is None, name
        else:
            assert mine.grad is not None
            torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-12, atol=1e-12)


# -- modes ---------------------------------------------------------------------------------------


class Modes(nn.Module):
    """Dropout as a module and as a function, dropout in attention, two batch norms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 6, 1)
        self.norm = nn.BatchNorm1d(6)
        self.drop = nn.Dropout(0.5)
        self.average = nn.BatchNorm1d(6, momentum=None, affine=False)
        self.bare = nn.BatchNorm1d(6, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.bare(self.norm(self.conv(x)))
        h = F.dropout(self.drop(h), 0.25, self.training)
        q = h.transpose(1, 2).unsqueeze(1)
        h = F.scaled_dot_product_attention(q, q, q, dropout_p=0.5 if self.training else 0.0)
        return h.squeeze(1)


def modes_input() -> Tensor:
    return torch.randn(4, 4, 5, dtype=torch.float64)


@pytest.mark.parametrize("traced_in", ["train", "eval"])
def test_switching_modes_equals_the_module(traced_in: str) -> None:
    module = Modes().double().train(traced_in == "train")
    model = esper.trace(module, (modes_input(),))
    assert model.notes == []
    assert model.training == module.training
    for training in (True, False, True, True, False):
        model.train(training)
        module.train(training)
        both(model, module, modes_input())
        same(state(model), state(module))
    assert int(module.norm.num_batches_tracked or 0) == 3


def test_training_steps_equal_the_module() -> None:
    module = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(4, 2, 1)
    ).double()
    model = esper.trace(module, (torch.randn(3, 2, 5, 5, dtype=torch.float64),))
    optimizers = [torch.optim.AdamW(m.parameters(), lr=0.05) for m in (model, module)]
    for step in range(3):
        x = torch.randn(3, 2, 5, 5, dtype=torch.float64)
        for each, optimizer in zip((model, module), optimizers, strict=True):
            torch.manual_seed(step)
            optimizer.zero_grad()
            each(x).square().mean().backward()
            optimizer.step()
    same(state(model), state(module))
    assert int(model.state_dict()["1.num_batches_tracked"]) == 3


def test_batch_norm_without_momentum_is_not_silently_wrong() -> None:
    """A cumulative average divides by the counter: the module and the model must agree, or a
    note must say that modes cannot switch.
    """
    module = nn.BatchNorm1d(3, momentum=None).double()
    x = torch.randn(4, 3, dtype=torch.float64)
    try:
        model = esper.trace(module, (x,))
    except TraceError:
        return
    for _ in range(2):
        x = torch.randn(4, 3, dtype=torch.float64)
        both(model, module, x)
    same(state(model), state(module))


def test_modes_with_other_ops_are_noted() -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.fc(x)
            return out.sin() if self.training else out.cos()

    module = Other().eval()
    model = esper.trace(module, (torch.randn(2, 3),))
    (note,) = model.notes
    assert "the training trace has other ops than the evaluation trace" in note


def test_a_mode_that_cannot_be_exported_is_noted() -> None:
    class Breaks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if self.training and x.sum() > 0:
                return x
            return -x

    model = esper.trace(Breaks().eval(), (torch.randn(2, 3),))
    (note,) = model.notes
    assert note.startswith("cannot switch to training mode exactly: Breaks cannot be exported")


@pytest.mark.parametrize("name", ["bert", "gpt2", "resnet_basic", "efficientnet"])
def test_models_of_the_zoo_train_as_the_originals(name: str) -> None:
    module, args, kwargs = MODELS[name](dtype=torch.float64)
    model = esper.trace(module, args, kwargs)
    assert model.notes == []
    both(model, module, *args, **kwargs)
    model.train()
    module.train()
    both(model, module, *args, **kwargs)
    same(state(model), state(module))


# -- sizes ---------------------------------------------------------------------------------------


def sizes(model: Model, name: str) -> list[Any]:
    value = model.nodes[name].meta["val"]
    return [s if isinstance(s, int) else "dynamic" for s in value.shape]


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_batch_is_dynamic_whatever_the_example(batch: int) -> None:
    module = nn.Linear(3, 2).double()
    model = esper.trace(module, (torch.randn(batch, 3, dtype=torch.float64),))
    (name,) = [n.name for n in model.graph.find_nodes(op="placeholder")]
    assert sizes(model, name) == ["dynamic", 3]
    assert model.notes == []
    for other in (1, 2, 9):
        both(model, module, torch.randn(other, 3, dtype=torch.float64))


def test_example_inputs_are_those_given() -> None:
    x = torch.randn(1, 3)
    args, kwargs = esper.trace(nn.Linear(3, 2), (x,)).example_inputs
    assert args[0] is x
    assert kwargs == {}


def test_static_and_named_dynamic_dimensions() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 2)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            out: Tensor = self.fc(x) * mask[..., None]
            return out

    module = Tokens().double()
    x, mask = torch.randn(3, 5, 4, dtype=torch.float64), torch.ones(3, 5, dtype=torch.float64)
    static = esper.trace(module, (x, mask), dynamic="static")
    assert sizes(static, "x") == [3, 5, 4]
    batch = esper.trace(module, (x, mask))
    assert sizes(batch, "x") == ["dynamic", 5, 4]
    more = esper.trace(module, (x,), {"mask": mask}, dynamic={"x": [1], "mask": [-1]})
    assert sizes(more, "x") == ["dynamic", "dynamic", 4]
    assert sizes(more, "mask") == ["dynamic", "dynamic"]
    longer = torch.randn(2, 8, 4, dtype=torch.float64), torch.ones(2, 8, dtype=torch.float64)
    both(more, module, longer[0], mask=longer[1])


def test_unknown_name_of_a_dynamic_dimension() -> None:
    with pytest.raises(TraceError, match=r"no input is called 'y'; the inputs are input"):
        esper.trace(nn.Linear(3, 2), (torch.randn(2, 3),), dynamic={"y": [1]})


@pytest.mark.parametrize("dim", [2, -3])
def test_a_dynamic_dimension_that_is_not_there(dim: int) -> None:
    with pytest.raises(TraceError, match=rf"input 'input' has no dimension {dim}: it is 2x3"):
        esper.trace(nn.Linear(3, 2), (torch.randn(2, 3),), dynamic={"input": [dim]})


def test_a_dynamic_dimension_of_an_input_that_is_not_given() -> None:
    class Masked(nn.Module):
        def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
            return x if mask is None else x * mask

    with pytest.raises(TraceError, match="no input is called 'mask'; the inputs are x"):
        esper.trace(Masked(), (torch.randn(2, 3),), dynamic={"mask": [1]})


def test_a_batch_that_the_code_fixes_is_noted() -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(4, 3) * 2

    model = esper.trace(Fixed(), (torch.randn(4, 3),))
    assert model.notes == [
        "dimension 0 of input x is fixed at 4: the model's code does not allow another size"
    ]


# -- metadata and errors -------------------------------------------------------------------------


def test_nodes_know_their_module_and_line() -> None:
    model = esper.trace(Modes().double(), (modes_input(),))
    convolution = next(n for n in model.graph.nodes if "conv1d" in str(n.target))
    assert convolution.meta["module"] == "conv"
    assert convolution.meta["source"].startswith("test_trace.py:")
    assert "self.conv(x)" in convolution.meta["source"]
    for node in model.graph.nodes:
        assert node.meta.keys() <= {"val", "module", "source", "modes", "counter"}
        assert "/" not in node.meta["source"].partition(":")[0]


def test_what_is_not_a_module_is_refused() -> None:
    with pytest.raises(TraceError, match=r"takes an nn.Module, not function"):
        esper.trace(lambda x: x, (torch.ones(2),))  # type: ignore[arg-type]


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x
        return -x


class Calls(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        wide: Tensor = self.fc(x)
        return wide.relu()


def wrong_argument() -> None:
    esper.trace(nn.Linear(3, 2), (torch.randn(2, 3), torch.randn(2, 3)))


@pytest.mark.parametrize(
    ("build", "where"),
    [
        (Branches, "if x.sum() > 0:"),
        (Calls, "wide: Tensor = self.fc(x)"),
    ],
)
def test_error_names_the_module_and_the_line_of_the_user(
    build: Callable[[], nn.Module], where: str
) -> None:
    with pytest.raises(TraceError) as caught:
        esper.trace(build(), (torch.randn(2, 3),))
    text = str(caught.value)
    assert text.startswith(f"{build.__name__} cannot be exported: ")
    assert text.endswith(f"({where})")
    assert "test_trace.py:" in text
    assert "\n" not in text


def test_wrong_number_of_arguments_is_one_sentence() -> None:
    with pytest.raises(TraceError) as caught:
        wrong_argument()
    assert "\n" not in str(caught.value)


def test_failure_leaves_the_modes_of_the_module() -> None:
    module = nn.Sequential(Branches(), nn.Dropout()).eval()
    module[1].train()
    with pytest.raises(TraceError):
        esper.trace(module, (torch.randn(2, 3),))
    assert [m.training for m in module.modules()] == [False, False, True]


def test_a_copy_is_independent() -> None:
    module = Modes().double()
    model = esper.trace(module, (modes_input(),))
    copied = copy.deepcopy(model)
    copied.eval()
    with torch.no_grad():
        copied.tensor("conv.weight").zero_()  # type: ignore[union-attr]
    both(model, module, modes_input())
    assert model.training
    assert list(copied.state_dict()) == list(model.state_dict())


class OnlyBuffers(nn.Module):
    """A module of buffers alone stands first, and tensors are read in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.constants = nn.Module()
        self.constants.register_buffer("values", torch.rand(4))
        self.second = nn.Linear(4, 4)
        self.first = nn.Linear(4, 4)
        self.register_buffer("late", torch.rand(4))

    def forward(self, x: Tensor) -> Tensor:
        table, late = self.constants.values, self.late
        assert isinstance(table, Tensor)
        assert isinstance(late, Tensor)
        out: Tensor = self.second(self.first(x) * late + table)
        return out


def test_tensors_are_in_the_order_of_the_original_module() -> None:
    module = OnlyBuffers()
    model = esper.trace(module, (torch.randn(2, 4),))
    assert list(model.state_dict()) == list(module.state_dict())
    assert list(copy.deepcopy(model).state_dict()) == list(module.state_dict())


class Reserved(nn.Module):
    """Attributes that bear names of a Model's own attributes."""

    history: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.plan = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.table = nn.Module()
        self.table.register_buffer("values", torch.rand(4))
        self.table_ = nn.Parameter(torch.rand(4))
        self.register_buffer("history", torch.rand(4), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        values = self.table.values
        assert isinstance(values, Tensor)
        out: Tensor = self.norm(self.plan(x)) + values * self.table_ + self.history
        return out


def test_names_that_a_model_needs_itself_are_moved_aside() -> None:
    module, x = Reserved(), torch.randn(5, 4)
    for training in (True, False):
        module.train(training)
        model = esper.trace(module, (x,))
        both(model, copy.deepcopy(module), x)
        assert list(model.state_dict()) == [
            "table_", "plan_.weight", "plan_.bias", "norm.weight", "norm.bias",
            "norm.running_mean", "norm.running_var", "norm.num_batches_tracked", "table__.values",
        ]  # fmt: skip
        assert "table is called table__ here, because table is an attribute of every Model" in (
            model.notes
        )
        assert len(model.notes) == 3
        assert callable(model.plan)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_zoo_state_dicts_are_in_the_original_order(name: str) -> None:
    module, args, kwargs = MODELS[name]()
    model = esper.trace(module, args, kwargs)
    assert list(model.state_dict()) == list(module.state_dict())
