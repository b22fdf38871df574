"""The ops of `esper_kernels` as Esper knows them: the entry point `esper` of `esper.kernels`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch

import esper_kernels.ops
from esper.ir.kernels import Kernel
from esper_passes import kernel_checks as checks
from esper_passes import kernel_rules as rules

ops = torch.ops.esper
_MODULE = esper_kernels.ops.__name__

KERNELS: Mapping[Any, Kernel] = MappingProxyType(
    {
        ops.vnm_linear.default: Kernel(
            _MODULE, rules.runs_linear(index=2, scale=None, bias=3), checks.runs(index=2, run=5)
        ),
        ops.int8_linear.default: Kernel(_MODULE, rules.int8_linear, checks.scale(2)),
        **dict.fromkeys(
            (ops.vnm_int8_linear.default, ops.vnm_dynamic_linear.default),
            Kernel(
                _MODULE,
                rules.runs_linear(index=3, scale=2, bias=4),
                checks.both(checks.runs(index=3, run=6), checks.scale(2)),
            ),
        ),
        ops.sparse24_linear.default: Kernel(_MODULE, rules.sparse24_linear, checks.two_of_four),
        ops.gated_linear.default: Kernel(
            _MODULE,
            rules.gated_linear,
            checks.both(
                checks.scale(3), checks.scale(4), checks.runs(index=5, run=9), checks.runs(6, 9)
            ),
        ),
        ops.low_rank_linear.default: Kernel(_MODULE, rules.low_rank_linear, checks.nothing),
        ops.attention_projections.default: Kernel(
            _MODULE, rules.attention_projections, checks.nothing
        ),
    }
)
