"""Live surgery on a CUDA device: state stays on it, whatever the optimizer keeps there."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import esper
from esper.propose import PruneUnits, WidenUnits
from tests.live.training import CUT, DROP, batch, traced

DEVICES = [
    "cpu",  # the test itself is checked everywhere
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
    ),
]
OPTIMIZERS: dict[str, Callable[[Any, str], torch.optim.Optimizer]] = {
    "adamw capturable": lambda p, device: torch.optim.AdamW(
        p, lr=0.01, capturable=device == "cuda"
    ),
    "adamw fused": lambda p, _: torch.optim.AdamW(p, lr=0.01, fused=True),
    "adam foreach": lambda p, _: torch.optim.Adam(p, lr=0.01, foreach=True, amsgrad=True),
    "momentum": lambda p, _: torch.optim.SGD(p, lr=0.05, momentum=0.9),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("scaled", [False, True])
def test_training_goes_on_where_it_was(name: str, device: str, scaled: bool) -> None:
    model = traced(torch.float32).to(device)
    optimizer = OPTIMIZERS[name](model.parameters(), device)
    scaler = torch.amp.GradScaler(device, init_scale=16.0) if scaled else None
    average = torch.optim.swa_utils.AveragedModel(model)
    session = esper.Session(model, optimizer, scaler=scaler, ema=average, verify="full")
    data = torch.Generator().manual_seed(1)
    changes: list[Any] = [CUT, WidenUnits(axis=CUT.axis, count=2), None, DROP]
    for change in (None, *changes, None):
        inputs, labels = (t.to(device) for t in batch(data, torch.float32))
        optimizer.zero_grad()
        with torch.autocast(device, torch.float16, enabled=scaled):
            loss = nn.functional.cross_entropy(model(inputs).float(), labels)
        torch.autograd.backward(loss if scaler is None else scaler.scale(loss))
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
        average.update_parameters(model)
        assert math.isfinite(float(loss.detach()))
        with session.boundary(loss) as boundary:
            if change is not None:
                (record,) = boundary.submit(change)
                assert record.kind == "passed", record.line()
        assert {t.device.type for _, t in model.all_tensors()} == {device}
        for parameter, state in optimizer.state.items():
            for key, value in state.items():
                moment = torch.is_tensor(value) and value.ndim > 0
                if moment:
                    assert value.device == parameter.device, key
                    assert value.shape == parameter.shape, key
    session.close()


@pytest.mark.parametrize("device", DEVICES)
def test_a_run_resumes_bit_for_bit(device: str) -> None:
    def start() -> esper.Session:
        model = traced(torch.float32).to(device)
        return esper.Session(model, torch.optim.AdamW(model.parameters(), lr=0.01))

    def run(session: esper.Session, data: torch.Generator, steps: int) -> list[float]:
        losses = []
        for _ in range(steps):
            inputs, labels = (t.to(device) for t in batch(data, torch.float32))
            session.optimizer.zero_grad()
            loss = nn.functional.cross_entropy(session.model(inputs), labels)
            torch.autograd.backward(loss)
            session.optimizer.step()
            losses.append(float(loss.detach()))
            with session.boundary(loss) as boundary:
                if session.tick == 3:
                    cut = PruneUnits(axis=CUT.axis, units=(5,))
                    assert boundary.submit(cut)[0].kind == "passed"
        return losses

    session, data = start(), torch.Generator().manual_seed(2)
    run(session, data, 5)
    state, place = session.state_dict(), data.get_state()
    saved = torch.utils._pytree.tree_map_only(torch.Tensor, torch.clone, state)
    expected = run(session, data, 4)
    again = start()
    again.load_state_dict(saved)
    data.set_state(place)
    assert run(again, data, 4) == expected
