#!/usr/bin/env bash
# Everything that wants a CUDA device, in one command and under ten minutes: the tests first, then
# the end-to-end comparisons. Uses the Python and the packages that it finds, and no network.
# Results go to $OUT (default benchmarks/results/gpu).
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
OUT=${OUT:-benchmarks/results/gpu}
PYTHON=${PYTHON:-python3}
export PYTHONPATH=".:passes:kernels${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
mkdir -p "$OUT"


"$PYTHON" - <<'PY' || exit 2
import importlib.util, sys
import torch
wanted = "hypothesis networkx numpy pydantic pytest rich safetensors transformers typer".split()
missing = [name for name in wanted if importlib.util.find_spec(name) is None]
print(f"torch {torch.__version__}, CUDA {torch.version.cuda}")
if missing:
    sys.exit(f"error: these packages are missing: {', '.join(missing)}")
if not torch.cuda.is_available():
    sys.exit("error: torch finds no CUDA device here")
print(torch.cuda.get_device_name())
PY

# Passes are found by entry points; without an installed package, write what one would hold.
if ! "$PYTHON" -c 'import importlib.metadata as m; m.distribution("esper-opt")' 2>/dev/null; then
    site=$(mktemp -d)
    "$PYTHON" - "$site" <<'PY' || exit 2
import pathlib, sys, tomllib
project = tomllib.loads(pathlib.Path("pyproject.toml").read_text())["project"]
folder = pathlib.Path(sys.argv[1], f"esper_opt-{project['version']}.dist-info")
folder.mkdir()
name, version = project["name"], project["version"]
folder.joinpath("METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
groups = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in table.items())
          for group, table in project["entry-points"].items()]
folder.joinpath("entry_points.txt").write_text("\n".join(groups))
PY
    export PYTHONPATH="$site:$PYTHONPATH"
fi

status=0
echo "== tests"
timeout 240 "$PYTHON" -m pytest tests/gpu -q -p no:cacheprovider -p no:xdist \
    --junitxml="$OUT/tests.xml" 2>&1 | tee "$OUT/tests.log" || status=1
echo "== end to end"
timeout 330 "$PYTHON" benchmarks/gpu/end_to_end.py --budget-seconds 25 \
    2>&1 | tee "$OUT/end_to_end.log" || status=1
cp benchmarks/results/gpu_end_to_end.json "$OUT/" 2>/dev/null || status=1
echo "== results in $OUT (status $status)"
exit $status
