"""Workers that load data see nothing of surgery: a run is the same with and without them."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import esper
from tests.live.training import CUT, step, traced


class Items(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Forty rows that are computed when asked for."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(6, generator=torch.Generator().manual_seed(index), dtype=torch.float64)
        return x, (x.sum() > 0).long()


def _run(workers: int) -> list[float]:
    model = traced()
    loader = DataLoader(
        Items(),
        batch_size=8,
        num_workers=workers,
        persistent_workers=workers > 0,
        multiprocessing_context="fork" if workers else None,
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    session, losses = esper.Session(model, optimizer), list[float]()
    for _ in range(2):
        for inputs in loader:
            losses.append(step(model, optimizer, inputs))
            with session.boundary(losses[-1]) as boundary:
                if len(losses) == 3:
                    assert boundary.submit(CUT)[0].kind == "passed"
    session.close()
    return losses


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # where there is one core
def test_workers_change_nothing() -> None:
    assert _run(2) == _run(0)
