"""A pruned graph against the same smaller architecture built by hand, same backend, paired.

    python benchmarks/structure/tightness.py

The hand-built model takes the pruned model's state dict as it is and must give its outputs bit for
bit up to rounding: only then is the comparison of times fair.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import nn

import esper
from benchmarks.result_file import write
from esper.gate.backends.base import Context
from esper.gate.gate import Gate, usable_backends

Case = tuple[Callable[[bool], nn.Module], str, float, tuple[Any, ...], dict[str, Any]]


class ConvNet(nn.Module):
    """VGG-like: three stages of two convolutions with batch norm."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for i, width in enumerate(widths):
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            if i % 2:
                layers.append(nn.MaxPool2d(2))
            before = width
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(before, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x).mean((2, 3)))  # type: ignore[no-any-return]


def bert(small: bool) -> nn.Module:
    """Six layers of width 384; 1536 or 1024 neurons."""
    from transformers import BertConfig, BertModel

    config = BertConfig(
        num_hidden_layers=6,
        hidden_size=384,
        num_attention_heads=12,
        intermediate_size=1024 if small else 1536,
        vocab_size=1000,
    )
    module: nn.Module = BertModel(config, add_pooling_layer=False)
    return module.eval()


def llama(small: bool) -> nn.Module:
    """Four layers of width 512, head size 64; 8 or 4 heads (all with their own keys)."""
    from transformers import LlamaConfig, LlamaModel

    heads = 4 if small else 8
    config = LlamaConfig(
        num_hidden_layers=4,
        hidden_size=512,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=64,
        intermediate_size=1408,
        vocab_size=1000,
        use_cache=False,
    )
    module: nn.Module = LlamaModel(config)
    return module.eval()


def convnet(small: bool) -> nn.Module:
    """Widths 64, 64, 128, 128, 256, 256, or three quarters of each."""
    widths = (48, 48, 96, 96, 192, 192) if small else (64, 64, 128, 128, 256, 256)
    return ConvNet(widths).eval()


def cases() -> dict[str, Case]:
    """Name -> (builder, axes to prune, ratio, args, kwargs)."""
    ids = torch.randint(0, 1000, (2, 32), generator=torch.Generator().manual_seed(0))
    image = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    tokens = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return {
        "BERT, 1536 to 1024 neurons": (bert, "neurons", 1 / 3, (), tokens),
        "Llama, 8 to 4 heads": (llama, "heads", 0.5, (), {"input_ids": ids}),
        "ConvNet, three quarters of the channels": (convnet, "channels", 0.25, (image,), {}),
    }


def main() -> None:
    """Measure every case on every usable backend and write the result file."""
    rows: list[dict[str, Any]] = []
    for name, (build, axes, ratio, args, kwargs) in cases().items():
        torch.manual_seed(0)
        model = esper.trace(build(False), args, kwargs)
        pruned = esper.optimize(model, f"prune{{axes={axes} ratio={ratio} align=1}}").model
        by_hand = build(True)
        by_hand.load_state_dict(pruned.state_dict())
        smaller = esper.trace(by_hand, args, kwargs)
        difference = _difference(pruned, smaller, args, kwargs)
        gate = Gate()
        for backend, missing in usable_backends(Context()).items():
            if missing is not None:
                print(f"{backend}: {missing}")
                continue
            table = gate.measure(
                {
                    "by hand": (smaller, backend),
                    "copy": (copy.deepcopy(smaller), backend),
                    "pruned": (pruned, backend),
                },
                (args, kwargs),
                processes=8,
            )
            row, control = table.row("pruned"), table.row("copy")
            rows.append(
                {
                    "model": name,
                    "backend": backend,
                    "by hand ms": round(table.row("by hand").milliseconds, 3),
                    "pruned ms": round(row.milliseconds, 3),
                    "speed of pruned over by hand": round(row.ratio, 4),
                    "lower": round(row.lower, 4),
                    "upper": round(row.upper, 4),
                    "speed of a copy of by hand": round(control.ratio, 4),
                    "largest output difference": difference,
                }
            )
            print(rows[-1], flush=True)
    write(
        "tightness",
        "A pruned graph against the same architecture built by hand",
        rows,
        command="python benchmarks/structure/tightness.py",
        notes=[
            "Bounds are one-sided at 99%. The goal is a speed of at least 0.98.",
            "Beside them a copy of the model built by hand: how far it is from 1 is the noise.",
        ],
    )


def _difference(a: nn.Module, b: nn.Module, args: Any, kwargs: Any) -> float:
    with torch.no_grad():
        left = torch.utils._pytree.tree_leaves(a(*args, **kwargs))
        right = torch.utils._pytree.tree_leaves(b(*args, **kwargs))
    worst = max(float((x - y).abs().max()) for x, y in zip(left, right, strict=True))
    if worst > 1e-4:
        raise RuntimeError(f"the hand-built model computes something else (by {worst:g})")
    return worst


if __name__ == "__main__":
    main()
