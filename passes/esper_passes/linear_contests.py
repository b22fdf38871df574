"""Linear layers that a kernel could compute, set against the op that is there.

Both ways compute on random data of the example's sizes; a packed weight keeps the runs of the real
one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, fx

from esper.plan import Refusal
from esper.propose import LowerLinear, LowerLowRank
from esper.propose.lowering import LinearKernel
from esper_passes.contest import Contest, Way
from esper_passes.contest_parts import bytes_of, facts, input_of, runs_of
from esper_passes.kept import Kept, TwoOfFour, filled, kept_two_of_four
from esper_passes.kernel_ops import ops as kernels
from esper_passes.lower_low_rank import low_rank_pair
from esper_passes.lowerable import Lowerable, lowerable, rounded
from esper_passes.random_weight import RandomWeight
from esper_passes.run_structure import find_runs, is_two_of_four

if TYPE_CHECKING:
    from esper.ir.model import Model
    from esper_passes.example_sizes import ExampleSizes

# Whether runs are skipped, whether integers are stored -> the kernel.
_KERNELS: dict[tuple[bool, bool], LinearKernel] = {
    (True, False): "vnm_linear",
    (True, True): "vnm_int8_linear",
    (False, True): "int8_linear",
}


def linear_contest(model: Model, node: fx.Node, sizes: ExampleSizes) -> Contest | Refusal | None:
    """A layer with runs to skip, 2:4 on a GPU, or int8; None where a kernel has nothing to gain."""
    layer = lowerable(model, node) or rounded(model, node)
    if not isinstance(layer, Lowerable):
        return layer
    counts = filled(model, layer)
    structure = find_runs(counts)
    kept: Kept | None = runs_of(model, layer, structure)
    kernel = _KERNELS.get((kept is not None, layer.scale is not None))
    if layer.rounding:  # its kernel is one of CPUs
        on_cpu = layer.read.meta["val"].device.type == "cpu"
        kernel = "vnm_dynamic_linear" if kept is not None and on_cpu else None
    rows, run = (0, 0) if structure is None else (structure.rows, structure.run)
    if kernel is None and counts.is_cuda and is_two_of_four(counts):
        found = kept_two_of_four(model, layer)
        if isinstance(found, TwoOfFour):
            kept, kernel = found, "sparse24_linear"
    if kernel is None:
        return None

    def ways(x: Tensor) -> tuple[Way, Way]:
        weight = RandomWeight.like(layer, kept)
        return (
            Way(lambda: weight.dense(x), (x, *weight.trained)),
            Way(lambda: weight.packed(x), (x, *weight.trained_packed)),
        )

    return Contest(
        LowerLinear(node=node.name, kernel=kernel, rows=rows, run=run),
        (layer.weight,),
        {**facts(kernel, layer, sizes, kept), "bias": layer.bias is not None},
        input_of(layer, sizes),
        ways,
        bytes_of([layer]),
    )


def low_rank_contest(model: Model, node: fx.Node, sizes: ExampleSizes) -> Contest | Refusal | None:
    """Two layers in a row with a narrow value between."""
    pair = low_rank_pair(model, node)
    if pair is None or isinstance(pair, Refusal):
        return None  # the layers say why
    down, up = pair

    def ways(x: Tensor) -> tuple[Way, Way]:
        first, second = (RandomWeight.like(layer, None) for layer in pair)
        leaves = (x, *first.trained, *second.trained)
        call = kernels.low_rank_linear.default
        return (
            Way(lambda: second.dense(first.dense(x)), leaves),
            Way(lambda: call(x, first.values, second.values, second.bias), leaves),
        )

    hang_on = {
        **facts("low_rank_linear", down, sizes),
        "outputs": up.size[0],
        "pattern": f"rank {down.size[0]}",
        "bias": up.bias is not None,
    }
    names = (down.weight, up.weight)
    x = input_of(down, sizes)
    return Contest(LowerLowRank(node=node.name), names, hang_on, x, ways, bytes_of(pair))
