"""`esper::vnm_dynamic_linear` as an operator of PyTorch, for CPUs.

The gradient of x passes its rounding as if there were none (a straight-through estimator, Bengio et
al., arXiv:1308.3432): it is that of `vnm_int8_linear`.
"""

from __future__ import annotations

from torch import Tensor

from esper_kernels.define import define, differentiate
from esper_kernels.vnm_dynamic_linear import cpu
from esper_kernels.vnm_int8_linear import op as floating

_NAME = "esper::vnm_dynamic_linear"


def _shape(
    x: Tensor,
    values: Tensor,
    scale: Tensor,
    index: Tensor,
    bias: Tensor | None,
    rows: int,
    run: int,
) -> Tensor:
    floating.check(_NAME, x, values, scale, index, bias, rows, run)
    return x.new_empty(*x.shape[:-1], values.shape[0])


# Nor does autocast cast what the ops that it stands for read: they round in float32 anyway.
vnm_dynamic_linear = define(
    "vnm_dynamic_linear", _shape, floating.compute, cpu, devices=("cpu",), autocast=False
)


differentiate(vnm_dynamic_linear, floating.backward, floating.save)
