"""Hosts: stochastic depth leaves branches out in training only, and goes with its branch."""

from __future__ import annotations

import torch

import esper
from esper.demo.data import images
from esper.demo.hosts import StochasticDepth, image_host
from esper.propose import DropRegion


def test_items_go_without_the_branch_as_a_whole_in_training() -> None:
    branch = torch.ones(4000, 2, 3)
    dropped = StochasticDepth(0.25).train()(branch)
    kept = dropped[:, 0, 0] != 0
    assert torch.equal(dropped[kept], branch[kept] / 0.75)
    assert torch.equal(dropped[~kept], torch.zeros_like(branch[~kept]))
    assert 0.7 < kept.float().mean() < 0.8
    assert torch.equal(StochasticDepth(0.25).eval()(branch), branch)


def test_deeper_blocks_are_left_out_more_often() -> None:
    data = images()
    rates = [
        node.args[1]
        for node in image_host(data, 0, depth=4, drop=0.4).graph.nodes
        if node.target is torch.ops.aten.dropout.default
    ]
    torch.testing.assert_close(rates, [0.1, 0.2, 0.3, 0.4])
    plain = image_host(data, 0, depth=4).graph.nodes
    assert not [node for node in plain if "dropout" in str(node.target)]


def test_what_drops_a_branch_goes_with_it() -> None:
    model = image_host(images(), 0, depth=2, drop=0.4)
    assert all(phage.bypassable for phage in model.anatomy.phages.values())
    record = esper.PassManager(model).apply(DropRegion(region="phage:blocks.1"))
    assert record.kind == "passed", record.line()
    left = [node.args[1] for node in model.graph.nodes if "dropout" in str(node.target)]
    assert left == [0.2]
