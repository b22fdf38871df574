"""Our kernels beside oneDNN, MKL and int8 on this CPU, with one thread; plots go to docs.

python benchmarks/kernels/cpu.py [OPTION of esper bench kernels...]
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.readme import RESULTS, ROOT
from esper.cli.main import main

# Large and small, square and not; odd sizes, which most patterns do not fit; and what is fused.
SHAPES = (
    "llama-3-8b/o,llama-3-8b/mlp,llama-3-8b/projections,qwen2.5-7b/o,bert-base/up,bert-base/down,"
    "vit-b16/head,mixer-b16/token-up"
)
PATTERNS = (
    "dense,128:*x16,128:1:4x*,512:2:4x16,512:1:4x16,512:1:4x16+int8,128x64@0.25,"
    "2:4,int8,low-rank@0.25"
)

if __name__ == "__main__":
    sys.exit(
        main(
            [
                "bench", "kernels", "--device", "cpu", "--threads", "1", "--shapes", SHAPES,
                "--patterns", PATTERNS, "-o", str(RESULTS / "kernels_cpu.json"),
                "--plot", str(ROOT / "docs" / "kernels"), *sys.argv[1:],
            ]
        )
    )  # fmt: skip
