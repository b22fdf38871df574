"""The training program of the storyboards: its schedule, its healing time, and what it costs."""

from __future__ import annotations

import torch

from esper.demo.cost import CostMeter
from esper.demo.data import images
from esper.demo.hosts import image_host
from esper.demo.training import train

SMALL = {"width": 4, "depth": 1, "drop": 0.5}


def test_counting_draws_no_random_numbers() -> None:
    data = images()
    model = image_host(data, 0, **SMALL)  # type: ignore[arg-type]
    meter = CostMeter()
    before = torch.get_rng_state()
    meter.step(model, data.train[0][:4])
    meter.step(model, data.train[0][:4])
    assert torch.equal(torch.get_rng_state(), before)
    assert meter.spent == 2 * meter.per_step > 0


def test_the_rate_falls_to_zero_at_the_end_alone() -> None:
    """Runs agree until the first begins to cool, and learn less from then on."""
    plain, cooled = (train(None, steps=10, model=SMALL, cool=cool) for cool in (0, 4))
    assert plain.losses[:8] == cooled.losses[:8]
    assert plain.losses[8:] != cooled.losses[8:]


def test_agents_rest_while_what_they_did_heals() -> None:
    agents = {"emrakul": {"every": 2, "warm": 4, "spike": 9.0, "young": 9.0}}
    run = train(None, steps=16, model=SMALL, agents=agents, agents_from=6, agents_until=11)
    assert {change.tick for change in run.changes} == {6, 8, 10}
    assert {change.proposer for change in run.changes} == {"emrakul"}
