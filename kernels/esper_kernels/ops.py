"""The operators. Importing this module defines them, also under `torch.ops.esper`."""

from esper_kernels.attention_projections.op import attention_projections
from esper_kernels.gated_linear.op import gated_linear
from esper_kernels.int8_linear.op import int8_linear
from esper_kernels.low_rank_linear.op import low_rank_linear
from esper_kernels.sparse24_linear.op import sparse24_linear
from esper_kernels.vnm_dynamic_linear.op import vnm_dynamic_linear
from esper_kernels.vnm_int8_linear.op import vnm_int8_linear
from esper_kernels.vnm_linear.op import vnm_linear

__all__ = [
    "attention_projections",
    "gated_linear",
    "int8_linear",
    "low_rank_linear",
    "sparse24_linear",
    "vnm_dynamic_linear",
    "vnm_int8_linear",
    "vnm_linear",
]
