"""Kernels compiled for devices that are not here: within limits, as meant, and as committed."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks.readme import RESULTS

triton = pytest.importorskip("triton")
pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION is unset")

from benchmarks.kernels.aot import row  # noqa: E402
from esper_kernels import aot, shipped  # noqa: E402
from esper_kernels.config import Config  # noqa: E402
from esper_kernels.gpu import linear  # noqa: E402

FIGURES = ("aot", "aot_triton36")  # of the newest Triton that is meant, and of the oldest
# `make aot` compiles all; these are one of each kernel and kind of factors.
SUBSET = [
    "vnm_linear, bfloat16, 128x16, 16x64x128 warps 4 stages 5 swap",
    "vnm_linear, bfloat16, 128x8, 128x128x64 warps 8 stages 4",
    "vnm_linear, float16, 128x16, 16x32x256 warps 4 stages 4 split 4",
    "vnm_linear, float32 tf32, 128x16, 128x64x32 warps 8 stages 3",
    "vnm_linear_backward_x, bfloat16, 128x64, 128x128x64 warps 8 stages 4",
    "vnm_linear_backward_values, bfloat16, 128x16, 128x128x64 warps 8 stages 4",
    "int8_linear, bfloat16, int8, 16x32x256 warps 4 stages 4",
    "vnm_int8_linear, bfloat16, 128x16 int8, 64x64x128 warps 8 stages 4",
    "gated_linear, bfloat16, 128x16, 16x64x128 warps 4 stages 4 swap",
    "gated_linear, bfloat16, dense int8, 16x64x128 warps 4 stages 4",
    "low_rank_linear, bfloat16, rank 512, 16x32x128 warps 4 stages 4 split 4",
    "attention_projections, bfloat16, 32 + 2 x 8 heads, 128x128x64 warps 8 stages 4",
    "sparse24_linear, bfloat16, 2:4, 16x32x64 warps 8 stages 1",
]


@pytest.fixture(scope="module")
def cases() -> dict[str, shipped.Case]:
    return {case.name: case for case in shipped.cases()}


def figures_of(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text())


@pytest.fixture(scope="module", params=FIGURES)
def committed(request: pytest.FixtureRequest) -> Any:
    return figures_of(request.param)


@pytest.mark.parametrize("name", SUBSET)
def test_a_kernel_compiles_to_what_is_meant(name: str, cases: dict[str, shipped.Case]) -> None:
    """With a Triton of committed figures, to those as well."""
    case, rows = cases[name], []
    for launch in case.launches():
        kernel = launch.kernel.__name__
        figures = aot.figures(launch, 90)
        assert not shipped.complaints(case, kernel, 90, figures)
        rows.append(row(case, kernel, 90, figures))
    for committed in map(figures_of, FIGURES):
        if committed["versions"]["triton"] == triton.__version__:
            known = [r for r in committed["rows"] if r["case"] == name and r["device"] == "sm_90"]
            assert rows == known, "what compiles has changed: look at it, and run `make aot`"


def test_figures_are_committed_of_the_oldest_and_the_newest_triton() -> None:
    versions = [figures_of(name)["versions"]["triton"] for name in FIGURES]
    assert [version.rpartition(".")[0] for version in versions] == ["3.9", "3.6"]


def test_the_committed_figures_are_of_all_that_is_shipped(
    cases: dict[str, shipped.Case], committed: Any
) -> None:
    told = {(r["case"], r["device"]) for r in committed["rows"]}
    meant = {
        (name, f"sm_{capability}")
        for name, case in cases.items()
        for capability in aot.CAPABILITIES
        if capability >= case.config.capability
    }
    assert told == meant


def test_the_committed_figures_are_within_limits(
    cases: dict[str, shipped.Case], committed: Any
) -> None:
    for r in committed["rows"]:
        instructions = {
            kind: int(number)
            for number, kind in (text.split(" ", 1) for text in r["instructions"].split(", "))
        }
        figures = aot.Figures(r["registers"], r["stack"], r["shared"], instructions)
        capability = int(r["device"].removeprefix("sm_"))
        assert not shipped.complaints(cases[r["case"]], r["kernel"], capability, figures)


GOOD = aot.Figures(100, 0, 1 << 16, {"wgmma": 4, "cp.async 16": 8})


@pytest.mark.parametrize(
    ("figures", "complaint"),
    [
        (replace(GOOD, stack=8), "8 bytes of a thread are not in registers"),
        (replace(GOOD, instructions={**GOOD.instructions, "local": 1}), "not in registers"),
        (replace(GOOD, registers=256), "256 registers"),
        (replace(GOOD, shared=1 << 18), "shared memory"),
        (replace(GOOD, instructions={"mma": 4, "cp.async 16": 8}), "no wgmma"),
        (replace(GOOD, instructions={"wgmma": 4}), "no cp.async 16"),
        (replace(GOOD, instructions={**GOOD.instructions, "load 2": 1}), "there is load 2"),
        (replace(GOOD, instructions={**GOOD.instructions, "cp.async narrow": 1}), "narrow"),
    ],
)
def test_what_is_not_as_meant_is_told(
    figures: aot.Figures, complaint: str, cases: dict[str, shipped.Case]
) -> None:
    case = cases[SUBSET[1]]
    assert not shipped.complaints(case, "linear_kernel", 90, GOOD)
    (found,) = shipped.complaints(case, "linear_kernel", 90, figures)
    assert complaint in found


def test_instructions_are_told_apart() -> None:
    code = """
        /*0130*/  LDGSTS.E.BYPASS.128.ZFILL [R5], desc[UR4][R2.64], P0 ;
        /*0140*/  LDGSTS.E [R5+0x10], desc[UR4][R2.64+0x10] ;
        /*0150*/  HMMA.16816.F32.BF16 R8, R4, R6, R8 ;
        /*0160*/  HMMA.SP.16832.F32.BF16 R8, R4, R12, R8, R3, 0x0 ;
        /*0170*/  HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8].tnspB, R24 ;
        /*0180*/  LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0190*/  LDG.E.U16 R4, desc[UR4][R2.64] ;
        /*01a0*/  STL [R1], R4 ;
    """
    assert aot.count(code) == {
        "cp.async 16": 1, "cp.async narrow": 1, "mma": 1, "sparse mma": 1, "wgmma": 1,
        "load 16": 1, "load 2": 1, "local": 1,
    }  # fmt: skip


def test_arguments_are_specialised_as_by_the_launcher() -> None:
    """1 and None are constants; what 16 divides is marked; so are pointers that are aligned."""
    x, weight = (torch.empty(*shape, device="meta") for shape in ((1, 40), (32, 40)))
    _, (launch,) = linear.launches(x, weight, None, None, None, None, 1, Config(16, 16, 16))
    types, constants, attributes = aot.specialise(launch)
    assert types["x"] == "*fp32"
    assert constants["tokens"] == 1
    assert constants["index"] is None
    names = list(types)
    marked = {names[place] for (place,) in attributes}
    assert marked == {"x", "weight", "out", "outputs", "rows"}  # 40 inputs are not
