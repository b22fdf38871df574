"""Gradients of single weights over the sampled steps, for masks that prune and regrow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch

from esper.errors import UsageError

if TYPE_CHECKING:
    from esper.ir.model import Model
    from esper.ir.sparsity import Mask

WeightSaliency = Literal["magnitude", "taylor", "fisher", "gradient"]


class Watched:
    """Running means of g and of g^2 for each entry of the tensors that are watched."""

    def __init__(self, memory: int) -> None:
        self._memory = memory
        self.tensors: dict[str, int] = {}  # samples so far
        self._mean: dict[str, torch.Tensor] = {}
        self._square: dict[str, torch.Tensor] = {}

    def start(self, tensors: Iterable[str]) -> None:
        """Watch these too; what is watched already goes on."""
        for name in tensors:
            self.tensors.setdefault(name, 0)

    def stop(self, *tensors: str) -> None:
        """Forget these."""
        for name in tensors:
            for table in (self.tensors, self._mean, self._square):
                table.pop(name, None)

    def add(self, model: Model, gradients: Mapping[str, torch.Tensor | None]) -> None:
        """One sample; what has another shape than before starts anew, what is gone is forgotten."""
        if not self.tensors:
            return
        living = {name for name, _ in model.named_parameters()}
        self.stop(*(name for name in list(self.tensors) if name not in living))
        for name, gradient in gradients.items():
            if gradient is None or name not in self.tensors:
                continue
            if name not in self._mean or self._mean[name].shape != gradient.shape:
                self.tensors[name] = 0
                self._mean[name] = torch.zeros_like(gradient)
                self._square[name] = torch.zeros_like(gradient)
            if not bool(torch.isfinite(gradient).all()):
                continue
            self.tensors[name] = count = self.tensors[name] + 1
            rate = 1 / min(count, self._memory)
            self._mean[name] = torch.lerp(self._mean[name], gradient, rate)
            self._square[name] = torch.lerp(self._square[name], gradient.square(), rate)

    def scores(self, model: Model, tensor: str, saliency: WeightSaliency) -> torch.Tensor:
        """How much each entry matters, higher is more.

        Args:
            model: the live model.
            tensor: name of a weight.
            saliency: `magnitude` |w|, `taylor` |w * E[g]| (first order), `fisher` w^2 * E[g^2]
                (diagonal Fisher, Theis et al., arXiv:1801.05787), `gradient` |E[g]|: what RigL
                grows by, for entries that are off.

        Raises:
            UsageError: the saliency needs gradients and none were sampled.
        """
        weight = model.get_parameter(tensor).detach()
        if saliency == "magnitude":
            return weight.abs()
        mean = self._gradient(tensor, weight)
        if saliency == "taylor":
            return (weight * mean).abs()
        if saliency == "fisher":
            return weight.square() * self._square[tensor]
        return mean.abs()

    def gates(self, model: Model, mask: Mask) -> torch.Tensor:
        """dL/d(gate) of each cell of a mask that has its pattern, (groups, cells).

        A gate scales the cell's weights: sum of w * E[g] over them. NaN for cells that are off,
        whose weights start at zero. Raises UsageError where no gradients were sampled.
        """
        tensor = mask.life.tensor
        weight = model.get_parameter(tensor).detach()
        products = torch.where(mask.value, weight * self._gradient(tensor, weight), 0.0)
        on = mask.pattern.on(mask.value)
        return torch.where(on, mask.pattern.cells(products.double()), torch.nan)

    def _gradient(self, tensor: str, weight: torch.Tensor) -> torch.Tensor:
        mean = self._mean.get(tensor)
        if mean is None or mean.shape != weight.shape:
            raise UsageError(
                f"no gradients of {tensor} were sampled: call session.signals.watch({tensor!r}) "
                "and train for a sampled step (a masked weight of a compiled model has them only "
                "with uncompiled=True)"
            )
        return mean

    def state_dict(self) -> dict[str, Any]:
        """Plain data and tensors (not copies)."""
        return {
            "tensors": dict(self.tensors), "mean": dict(self._mean), "square": dict(self._square)
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` returned."""
        self.tensors = dict(state["tensors"])
        self._mean = {name: value.clone() for name, value in state["mean"].items()}
        self._square = {name: value.clone() for name, value in state["square"].items()}
