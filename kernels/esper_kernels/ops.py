"""The operators. Importing this module defines them, also under `torch.ops.esper`."""

from esper_kernels.vnm_linear.op import vnm_linear

__all__ = ["vnm_linear"]
