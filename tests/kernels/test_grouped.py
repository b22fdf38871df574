"""Packed products on a CPU: layouts by number of samples, and the ways around them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import product
from threading import Barrier

import pytest
import torch
from torch import Tensor

from esper_kernels import at_once, grouped, grouped_int8, ops, scratch
from esper_kernels.gathering import samples_at_once
from esper_kernels.int8 import quantize
from esper_kernels.layouts import Layouts, library
from esper_kernels.vnm_dynamic_linear import cpu as dynamic
from esper_kernels.vnm_dynamic_linear import reference as dynamic_reference
from esper_kernels.vnm_linear import cpu, reference
from tests.kernels.problems import Sizes, sparse

SIZES = Sizes(inputs=192, outputs=300, rows=64, run=16)  # four whole groups and a shorter one
SAMPLES = (1, 5, 63, 64, 100, 130)  # oneDNN changes its mind on the way
# What the sum of magnitudes is off by.
TOLERANCES = {torch.float32: 2e-5, torch.bfloat16: 6e-2, torch.float16: 1e-2}


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_one_weight_for_every_number_of_samples(dtype: torch.dtype) -> None:
    packed, bias = sparse(SIZES, dtype), torch.randn(SIZES.outputs).to(dtype)
    arguments = (packed.index, bias, SIZES.rows, SIZES.run)
    for samples in (*SAMPLES, *SAMPLES):
        x = torch.randn(samples, SIZES.inputs).to(dtype)
        out = cpu.forward(x, packed.values, *arguments)
        wide = reference.forward(
            x.double(), packed.values.double(), packed.index, bias.double(), SIZES.rows, SIZES.run
        )
        torch.testing.assert_close(
            out.double(), wide, rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype]
        )
    assert 1 <= len(grouped._layouts(packed.values)._packed) <= 3


def test_a_layout_is_packed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    packed: list[int] = []
    pack = grouped._pack

    def counted(kernel: Tensor, groups: int, image: list[int]) -> Tensor:
        packed.append(image[2])
        return pack(kernel, groups, image)

    layouts, weight = Layouts(), torch.randn(96, 48)
    first = layouts.of(weight, 3, 32, 8, counted)
    assert layouts.of(weight, 3, 32, 8, counted) is first
    other = layouts.of(weight, 3, 32, 9, counted)  # whether it wants the same is not known yet
    assert other is first or len(layouts._packed) == 2
    again = Layouts()  # and now it is
    again.of(weight, 3, 32, 8, counted)
    assert (again.of(weight, 3, 32, 9, counted) is again.of(weight, 3, 32, 8, counted)) is (
        other is first
    )
    assert packed[:3] == [8, 9, 8]


def test_what_trains_is_multiplied_as_it_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = sparse(SIZES, torch.float32)
    assert grouped.packs(packed.values, torch.float32)
    assert not grouped.packs(packed.values, torch.bfloat16)
    assert not grouped.packs(packed.values.double(), torch.float64)
    assert not grouped.packs(packed.values.clone().requires_grad_(), torch.float32)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not library.__wrapped__()
    monkeypatch.setattr(grouped, "library", lambda: False)
    assert not grouped.packs(packed.values, torch.float32)
    monkeypatch.setattr(grouped_int8, "library", lambda: False)
    assert not grouped_int8.multiplies.__wrapped__()


# -- integers --------------------------------------------------------------------------------------


def _integers() -> tuple[Tensor, Tensor, Tensor]:
    packed = sparse(SIZES, torch.float32)
    values, scale = quantize(packed.values)
    return values, scale, packed.index


@pytest.mark.parametrize("fitting", [True, False])
def test_integers_with_and_without_the_library(
    fitting: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fitting and not grouped_int8.multiplies():
        pytest.skip("no VNNI here")
    monkeypatch.setattr(grouped_int8, "packs", lambda values: fitting)
    values, scale, index = _integers()
    bias = torch.randn(SIZES.outputs)
    for samples in SAMPLES:
        x = torch.randn(samples, SIZES.inputs)
        arguments = (x, values, scale, index, bias, SIZES.rows, SIZES.run)
        torch.testing.assert_close(
            dynamic.forward(*arguments), dynamic_reference.forward(*arguments), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("products", [True, False])
@pytest.mark.parametrize("inputs", [1024, 4096])
def test_the_largest_integers_do_not_overflow(
    inputs: int, products: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """255 times 127 in every place: pairs of these do not fit into 16 bits, nor sums into 24."""
    if not products:
        monkeypatch.setattr(grouped_int8, "multiplies", lambda: False)
    rows = 16
    values = torch.full((rows, inputs), 127, dtype=torch.int8)
    scale, index = torch.ones(rows), torch.arange(inputs // 16, dtype=torch.int32)[None]
    for x in (torch.full((3, inputs), 1.0), torch.full((3, inputs), -1.0)):
        out = ops.vnm_dynamic_linear(x, values, scale, index, None, rows, 16)
        torch.testing.assert_close(out, x[:, :rows] * 127 * inputs)
    values = torch.randint(100, 128, (rows, inputs), dtype=torch.int8)
    x = torch.randint(100, 128, (3, inputs)).float()
    x[:, 0] = 127  # so that rounding changes nothing
    exact = x.long() @ values.long().t()
    out = ops.vnm_dynamic_linear(x, values, scale, index, None, rows, 16)
    # oneDNN adds 128 to each integer, and that sum becomes float32 before it is taken off.
    rounding = 2**-22 if grouped_int8.multiplies() else 0.0
    torch.testing.assert_close(out, exact.float(), rtol=rounding, atol=0)


def test_sums_that_32_bits_cannot_hold_are_left_to_others() -> None:
    assert not grouped_int8.packs(torch.ones(1, grouped_int8._MOST + 1, dtype=torch.int8))


# -- memory ----------------------------------------------------------------------------------------


def test_what_is_gathered_into_kept_memory_is_right_and_free_for_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All modes and types share it; what is left of a call before, or is not a number, is gone."""
    monkeypatch.setattr(scratch, "_LEAST", 1)
    monkeypatch.setattr(scratch, "_kept", scratch._Kept())
    packed = sparse(SIZES, torch.float32)
    arguments = (packed.index, None, SIZES.rows, SIZES.run)
    for samples, guard in product((7, 90, 3), (torch.inference_mode, torch.no_grad)):
        if scratch._kept.memory is not None:
            scratch._kept.memory.fill_(255)  # not a number, in every floating type
        x = torch.randn(samples, SIZES.inputs)
        with guard():
            out = ops.vnm_linear(x, packed.values, *arguments)
        expected = reference.forward(x, packed.values, *arguments)
        torch.testing.assert_close(out, expected, rtol=2e-5, atol=2e-5)
        kept = out.clone()
        ops.vnm_linear(torch.randn(samples, SIZES.inputs), packed.values, *arguments)
        assert torch.equal(out, kept), "a result lies in the memory"
    assert scratch._kept.memory is not None
    assert len(scratch._kept.memory) == 90 * packed.index[:4].numel() * SIZES.run * 4


def test_memory_is_kept_for_each_thread_and_only_so_much(monkeypatch: pytest.MonkeyPatch) -> None:
    size = scratch._LEAST // 4

    def own() -> int:
        memory = scratch.scratch((size,), torch.float32)
        assert memory is not None
        again = scratch.scratch((2 * size,), torch.int16)
        assert again is not None
        assert again.data_ptr() == memory.data_ptr()
        both.wait(60)  # while the other still has its own
        return memory.data_ptr()

    both = Barrier(2)
    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(lambda _: own(), range(2))
    assert first != second
    assert scratch.scratch((size - 1,), torch.float32) is None
    assert scratch.scratch((scratch.MOST // 4 + 1,), torch.float32) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_samples_in_parts(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than is kept is gathered part by part."""
    monkeypatch.setattr(scratch, "_LEAST", 1)
    assert len(list(samples_at_once(70, 4 * SIZES.inputs, 10_000))) > 3
    monkeypatch.setattr(at_once, "gathered", lambda: 10_000)
    packed, x = sparse(SIZES, dtype), torch.randn(70, SIZES.inputs, dtype=dtype)
    arguments = (packed.index, torch.randn(SIZES.outputs, dtype=dtype), SIZES.rows, SIZES.run)
    out = cpu.forward(x, packed.values, *arguments)
    expected = reference.forward(x, packed.values, *arguments)
    torch.testing.assert_close(out, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("biased", [True, False])
def test_rounded_samples_in_parts(
    dtype: torch.dtype, biased: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each sample has its own scale, so parts are what all samples are together."""
    values, scale, index = _integers()
    x = torch.randn(70, SIZES.inputs).to(dtype)
    bias = torch.randn(SIZES.outputs).to(dtype) if biased else None
    arguments = (x, values, scale, index, bias, SIZES.rows, SIZES.run)
    whole = dynamic.forward(*arguments)
    monkeypatch.setattr(at_once, "rounded", lambda: 20_000)
    parts = dynamic.forward(*arguments)
    close = 1e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(parts, whole, rtol=close, atol=close)
    torch.testing.assert_close(parts, dynamic_reference.forward(*arguments), rtol=close, atol=close)


def test_parts_are_smaller_beside_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(at_once, "has_tiles", lambda: False)
    plain = at_once.gathered(), at_once.rounded()
    assert plain == (scratch.MOST, 4 << 20)
    monkeypatch.setattr(at_once, "has_tiles", lambda: True)
    assert at_once.gathered() < plain[0]
    assert at_once.rounded() > plain[1]
