"""Re-warm-up of single tensors is a smaller learning rate for those alone."""

from __future__ import annotations

import pytest
import torch

from esper.live.warmup import Warmup
from tests.live.training import OPTIMIZERS


@pytest.mark.parametrize("name", [n for n in OPTIMIZERS if n not in ("rprop", "adagrad")])
def test_updates_ramp_as_the_learning_rate_would(name: str) -> None:
    def start() -> tuple[torch.nn.Parameter, torch.optim.Optimizer]:
        torch.manual_seed(0)
        parameter = torch.nn.Parameter(torch.randn(4, 3, dtype=torch.float64))
        return parameter, OPTIMIZERS[name]([parameter])

    (warm, optimizer), (plain, other) = start(), start()
    warmup = Warmup(optimizer)
    warmup.start([warm], 4)
    rate = other.param_groups[0]["lr"]
    generator = torch.Generator().manual_seed(1)
    for done in range(6):
        gradient = torch.randn(4, 3, dtype=torch.float64, generator=generator)
        warm.grad, plain.grad = gradient.clone(), gradient.clone()
        other.param_groups[0]["lr"] = rate * min(1.0, (done + 1) / 4)
        optimizer.step()
        other.step()
        if "adafactor" not in name:  # its step also depends on the size of the weights
            torch.testing.assert_close(warm, plain)
    assert warmup.active() == {}


def test_it_can_begin_again_and_be_forgotten() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    warmup = Warmup(optimizer)
    warmup.start([parameter], 2)
    parameter.grad = torch.ones(2)
    optimizer.step()
    assert parameter.tolist() == [0.5, 0.5]
    warmup.start([parameter], 10)
    optimizer.step()
    torch.testing.assert_close(parameter.detach(), torch.full((2,), 0.4))
    warmup.forget([parameter])
    optimizer.step()
    torch.testing.assert_close(parameter.detach(), torch.full((2,), -0.6))
    warmup.start([parameter], 0)
    assert warmup.active() == {}
