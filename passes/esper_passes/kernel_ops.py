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
            _MODULE, rules.packed_linear(index=2, scale=None, bias=3), checks.runs(index=2, run=5)
        ),
    }
)
