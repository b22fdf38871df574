#!/usr/bin/env bash
# Everything that wants a CUDA device, in one command and under ten minutes: the tests first, then
# our kernels beside their peers, models through esper-opt, and the configs that are fastest here.
# Uses the Python and the packages that it finds, and no network.
# Results go to $OUT (default benchmarks/results/gpu): JSON, plots, and summary.md to read.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
OUT=${OUT:-benchmarks/results/gpu}
PYTHON=${PYTHON:-python3}
export PYTHONPATH="$PWD:$PWD/passes:$PWD/kernels${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
mkdir -p "$OUT"


"$PYTHON" - <<'PY' || exit 2
import importlib.util, sys
wanted = (
    "hypothesis networkx numpy pydantic pytest rich safetensors torch transformers triton typer"
)
missing = [name for name in wanted.split() if importlib.util.find_spec(name) is None]
if missing:
    sys.exit(f"error: these packages are missing: {', '.join(missing)}")
import torch
print(f"torch {torch.__version__}, CUDA {torch.version.cuda}")
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

# Parts and their longest seconds: ten minutes less what starting Python takes.
status=0
part() {
    local name=$1 limit=$2
    shift 2
    echo "== $name"
    timeout --kill-after=5 "$limit" "$@" 2>&1 | tee "$OUT/$name.log" || status=1
}

part tests 160 "$PYTHON" -m pytest tests/gpu -q -p no:cacheprovider -p no:xdist \
    --junitxml="$OUT/tests.xml"
part kernels 170 "$PYTHON" -m esper.cli.main bench kernels --quick --device cuda \
    --budget-seconds 145 --progress never -o "$OUT/kernels.json" --plot "$OUT/plots"
part end_to_end 160 "$PYTHON" benchmarks/end_to_end/random_transformers.py --budget-seconds 150 \
    --longest 75
written=benchmarks/results/gpu_end_to_end.json
# One that lay there before is of another run.
if [[ $written -nt $OUT/kernels.log ]]; then cp "$written" "$OUT/"; else status=1; fi
part tuning 80 "$PYTHON" benchmarks/gpu/tune.py --budget-seconds 65 -o "$OUT/tuned.json"
part summary 10 "$PYTHON" benchmarks/gpu/summary.py "$OUT"
echo "== results in $OUT (status $status)"
exit $status
