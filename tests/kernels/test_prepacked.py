"""Layouts kept beside a weight follow it, and go when it goes."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from esper_kernels import casting, grouped, ops
from esper_kernels.prepacked import Prepacked, keeps
from esper_kernels.vnm_linear import reference
from tests.kernels.problems import Sizes, sparse

SIZES = Sizes(samples=16, inputs=24, outputs=20)  # as many samples as have a layout kept


def product(values: Tensor, index: Tensor, x: Tensor) -> Tensor:
    out: Tensor = ops.vnm_linear(x, values, index, None, SIZES.rows, SIZES.run)
    expected = reference.forward(x, values, index, None, SIZES.rows, SIZES.run)
    torch.testing.assert_close(out, expected)
    return out


def _load(values: Tensor) -> None:
    module = nn.Module()
    module.register_buffer("values", values)
    module.load_state_dict({"values": torch.randn_like(values)})


def _replace(values: Tensor) -> None:
    values.data = torch.randn_like(values)


CHANGES: dict[str, Callable[[Tensor], object]] = {
    "in place": lambda values: values.mul_(3),
    "by index": lambda values: values[3].fill_(2),
    "copied onto": lambda values: values.copy_(torch.ones_like(values)),
    "through a view": lambda values: values.view(-1)[5:9].zero_(),
    "detached": lambda values: values.detach().add_(1),
    "loaded": _load,
    "new storage": _replace,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_updates_are_followed(change: Callable[[Tensor], object]) -> None:
    packed, x = sparse(SIZES, torch.float32), torch.randn(16, 24)
    before = product(packed.values, packed.index, x)
    with torch.no_grad():
        change(packed.values)
    assert not torch.equal(product(packed.values, packed.index, x), before)


def test_weights_that_train_have_none() -> None:
    """Optimizers and averages write through `.data`, which no counter sees."""
    packed, x = sparse(SIZES, torch.float32), torch.randn(16, 24)
    values = nn.Parameter(packed.values)
    before = len(grouped._layouts)
    one = product(values, packed.index, x)
    values.data.mul_(2)
    torch.testing.assert_close(product(values, packed.index, x), 2 * one)
    assert len(grouped._layouts) == before


def test_layouts_go_with_their_weight() -> None:
    packed, x = sparse(SIZES, torch.float32), torch.randn(16, 24)
    gc.collect()
    before = len(grouped._layouts)
    product(packed.values, packed.index, x)
    assert len(grouped._layouts) == before + 1
    again = copy.deepcopy(packed.values)
    product(again, packed.index, x)
    assert len(grouped._layouts) == before + 2
    del packed, again
    gc.collect()
    assert len(grouped._layouts) == before


def test_other_data_at_the_same_address_is_seen() -> None:
    """An allocator gives the address of what was freed again; the counter does not move."""
    weight = torch.randn(64)
    layouts = Prepacked(torch.clone)
    for _ in range(8):
        layouts(weight)
        weight.data = torch.randn(64)
        weight.data = torch.randn(64)
        assert torch.equal(layouts(weight), weight)


def test_built_once() -> None:
    built: list[int] = []

    def build(weight: Tensor, size: int) -> Tensor:
        built.append(size)
        return weight.clone()

    layouts = Prepacked(build)
    weight = torch.randn(4)
    assert layouts(weight, 1) is layouts(weight, 1)
    layouts(weight, 2)
    assert built == [1, 2]
    weight.add_(1)
    assert torch.equal(layouts(weight, 2), weight)
    assert built == [1, 2, 2]


def test_what_has_no_layout() -> None:
    weight = torch.randn(4, 6)
    assert keeps(weight)
    assert not keeps(weight.t())
    assert not keeps(nn.Parameter(weight))
    with torch.inference_mode():
        assert not keeps(torch.randn(4, 6))  # writes to it are not counted
        values = sparse(SIZES, torch.float32)
        one = product(values.values, values.index, torch.ones(16, 24))
        values.values.mul_(2)
        torch.testing.assert_close(
            product(values.values, values.index, torch.ones(16, 24)), 2 * one
        )


# -- under autocast --------------------------------------------------------------------------------


def lowered(values: Tensor, index: Tensor, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        out: Tensor = ops.vnm_linear(x, values, index, None, SIZES.rows, SIZES.run)
    expected = reference.forward(x, values, index, None, SIZES.rows, SIZES.run)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), expected, rtol=6e-2, atol=6e-2)
    return out


@pytest.mark.parametrize("guard", [torch.inference_mode, torch.no_grad])
def test_a_cast_of_autocast_is_made_and_packed_once(
    guard: Callable[[], AbstractContextManager[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    packed, x = sparse(SIZES, torch.float32), torch.randn(16, 24)
    packs: list[torch.dtype] = []
    pack = grouped._pack

    def counted(kernel: Tensor, groups: int, image: list[int]) -> Tensor:
        packs.append(kernel.dtype)
        return pack(kernel, groups, image)

    monkeypatch.setattr(grouped, "_pack", counted)
    casts = casting._kept(torch.bfloat16)
    gc.collect()
    before = len(casts)
    with guard():
        first, *_ = (lowered(packed.values, packed.index, x) for _ in range(3))
    assert packs == [torch.bfloat16]
    assert len(casts) == before + 1
    with torch.no_grad():
        packed.values.mul_(3)
    assert not torch.equal(lowered(packed.values, packed.index, x), first)
    assert len(packs) == 2
    del packed
    gc.collect()
    assert len(casts) == before


def test_what_has_no_memory_of_its_own_is_cast_each_time() -> None:
    """Weights that train, and those of transforms and compilers."""
    packed, x = sparse(SIZES, torch.float32), torch.randn(16, 24)
    casts = casting._kept(torch.bfloat16)
    gc.collect()
    before = len(casts)
    lowered(packed.values.clone().requires_grad_(), packed.index, x)
    with torch.inference_mode():
        values = packed.values.clone()
        lowered(values, packed.index, x)
    assert len(casts) == before

    def run(values: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            out: Tensor = ops.vnm_linear(x, values, packed.index, None, SIZES.rows, SIZES.run)
        return out

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    traced = make_fx(run)(packed.values)
    assert "_to_copy" in traced.code
    several = torch.stack([packed.values, 2 * packed.values])
    mapped = torch.vmap(run)(several)
    assert len(casts) == before
    torch.testing.assert_close(compiled(packed.values), run(packed.values))
    torch.testing.assert_close(mapped[1], run(several[1]))
