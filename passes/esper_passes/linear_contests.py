"""Linear layers that a kernel could compute, set against the op that is there.

Both ways compute on random data of the example's sizes; a packed weight keeps the runs of the real
one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import fx

from esper.plan import Refusal
from esper.propose import LowerLinear, LowerLowRank
from esper.propose.lowering import LinearKernel
from esper_passes.contest import Contest, Way
from esper_passes.contest_parts import dtype_of, facts, index_of, input_of, packed
from esper_passes.kept_runs import filled
from esper_passes.kernel_ops import ops as kernels
from esper_passes.lower_low_rank import low_rank_pair
from esper_passes.lowerable import Lowerable, lowerable
from esper_passes.random_weight import RandomWeight
from esper_passes.run_structure import find_runs

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
    """A layer with runs to skip, or int8; None for one that a kernel could do nothing for."""
    layer = lowerable(model, node)
    if not isinstance(layer, Lowerable):
        return layer
    structure = find_runs(filled(model, layer))
    if structure is None and layer.scale is None:
        return None
    rows, run = (structure.rows, structure.run) if structure is not None else (0, 0)
    index = index_of(model, layer, structure)
    kernel = _KERNELS[index is not None, layer.scale is not None]

    def ways() -> tuple[Way, Way]:
        x = input_of(layer, sizes)
        weight = RandomWeight.like(layer, index, rows, run)
        return (
            Way(lambda: weight.dense(x), (x, *weight.trained)),
            Way(lambda: packed(x, weight, rows, run), (x, *weight.trained_packed)),
        )

    return Contest(
        LowerLinear(node=node.name, kernel=kernel, rows=rows, run=run),
        (layer.weight,),
        facts(kernel, [(layer, index)], run, sizes) | {"bias": layer.bias is not None},
        ways,
    )


def low_rank_contest(model: Model, node: fx.Node, sizes: ExampleSizes) -> Contest | Refusal | None:
    """Two layers in a row with a narrow value between."""
    pair = low_rank_pair(model, node)
    if pair is None or isinstance(pair, Refusal):
        return None  # the layers say why
    down, up = pair

    def ways() -> tuple[Way, Way]:
        x = input_of(down, sizes)
        first, second = (RandomWeight.like(layer, None, 0, 0) for layer in pair)
        leaves = (x, *first.trained, *second.trained)
        call = kernels.low_rank_linear.default
        return (
            Way(lambda: second.dense(first.dense(x)), leaves),
            Way(lambda: call(x, first.values, second.values, second.bias), leaves),
        )

    facts = {
        "op": "low_rank_linear",
        "tokens": sizes.tokens(down.x),
        "outputs": up.size[0],
        "inputs": down.size[1],
        "dtype": dtype_of(down),
        "pattern": f"rank {down.size[0]}",
        "bias": up.bias is not None,
    }
    names = (down.weight, up.weight)
    return Contest(LowerLowRank(node=node.name), names, facts, ways)
