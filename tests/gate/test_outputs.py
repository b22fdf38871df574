"""Output classes of a model's library need not exist in the process that measures."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from esper.gate.backends.base import Call, Context
from esper.gate.backends.inductor import Inductor

LOAD = """
import sys, torch
from esper.gate.backends.base import Context, tensor_leaves
from esper.gate.backends.inductor import Inductor
from pathlib import Path

x = torch.ones(2, 4)
calls = [((x,), {})]
(y,) = tensor_leaves(Inductor().load(Path(sys.argv[1]), calls, Context())(x))
print(y.tolist())
"""


@dataclass
class Output:
    hidden: torch.Tensor


class Structured(nn.Module):
    def forward(self, x: torch.Tensor) -> Output:
        return Output(hidden=x * 2)


def test_inductor_packages_load_without_the_class_of_their_outputs(tmp_path: Path) -> None:
    torch.export.register_dataclass(Output, serialized_type_name="tests.gate.Output")
    calls: list[Call] = [((torch.ones(2, 4),), {})]
    Inductor().prepare(Structured().eval(), calls, tmp_path, Context())
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str([[2.0] * 4] * 2)
