"""`esper bench kernels` end to end on a CPU, and its errors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from esper.cli.main import main
from esper_kernel_bench import calibration, cpu_clock
from esper_kernel_bench.document import read
from tests.cli.support import assert_one_sentence

Capture = pytest.CaptureFixture[str]
TINY = ["--shapes", "mixer-b16/token-up", "--m", "1,8", "--dtypes", "fp32", "--quick"]


@pytest.fixture
def small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little cache to outrun and small products to calibrate with, so that a run takes seconds."""
    monkeypatch.setattr(cpu_clock, "last_level_cache", lambda: 2**20)
    monkeypatch.setitem(calibration._SIZES, "cpu", (64,))


@pytest.mark.usefixtures("small_machine")
def test_a_real_run(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "k.json"
    patterns = ["--patterns", "64:1:2x14,int8,low-rank@0.5,128:1:4x16"]
    words = ["bench", "kernels", *TINY, *patterns, "--device", "cpu"]
    assert main([*words, "-o", str(path), "--plot", str(tmp_path / "plots")]) == 0
    out = capsys.readouterr().out
    assert "mixer-b16/token-up" in out
    found = read(path)
    assert found["clock"] == "processor time of the one thread"
    assert found["device"]
    assert found["versions"]["torch"] == torch.__version__
    assert {(p["m"], p["dtype"]) for p in found["panels"]} == {(1, "fp32"), (8, "fp32")}
    ours = {(c["op"], c["compression"]) for c in found["cells"]}
    assert ours == {
        ("vnm_linear", "64:1:2x14"), ("int8_linear", "int8"), ("low_rank_linear", "low-rank@0.5"),
    }  # fmt: skip
    assert all(cell["fraction_calibrated"] > 0 for cell in found["cells"])
    for panel in found["panels"]:
        # What does not fit is there, with its reason.
        assert "196 inputs" in panel["absent"]["esper vnm_linear | 128:1:4x16"]
        for contender in panel["contenders"]:
            assert contender["error"] < 0.03
    assert len(list((tmp_path / "plots").glob("*.svg"))) == 3

    assert main(["bench", "kernels", "--compare", str(path), str(path)]) == 0
    assert " SAME, " in capsys.readouterr().out
    assert main(["bench", "kernels", "--show", str(path), "--json"]) == 0
    assert capsys.readouterr().out == path.read_text()
    again = tmp_path / "drawn" / "later"
    assert main(["bench", "kernels", "--show", str(path), "--plot", str(again)]) == 0
    drawn = {picture.name for picture in (tmp_path / "plots").glob("*.svg")}
    assert {picture.name for picture in again.glob("*.svg")} == drawn


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--shapes", "llama"], 2, "did you mean 'llama-3-8b'"),
        (["--patterns", "3;4"], 2, "no pattern"),
        (["--m", "x"], 2, "number of rows"),
        (["--dtypes", "int4"], 2, "fp32, fp16, bf16"),
        (["--quik"], 2, "did you mean --quick"),
        (["--threads", "-1"], 2, "number of threads"),
        (["--progress", "sometimes"], 2, "auto or never"),
        (["-o", "no/such/folder.json"], 2, "no directory"),
        (["--show", "absent.json"], 3, "absent.json"),
        (["--compare", "a.json", "b.json"], 3, "a.json"),
        (["--compare", "a.json", "b.json", "--plot", "plots"], 2, "--compare goes with none of"),
        (["--compare", "a.json", "b.json", "--show", "a.json"], 2, "--compare goes with none of"),
    ],
)
def test_errors_are_one_sentence(words: list[str], code: int, said: str, capsys: Capture) -> None:
    assert main(["bench", "kernels", *words]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert_one_sentence(err.replace(" no/such", ""))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_no_cuda_device_is_said(capsys: Capture) -> None:
    assert main(["bench", "kernels", *TINY, "--device", "cuda"]) == 2
    assert "no CUDA device" in capsys.readouterr().err


@pytest.mark.usefixtures("small_machine")
def test_a_format_that_the_processor_lacks_is_left_out_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packing for bfloat16 raises where there are no products of it."""

    def refuse(weight: torch.Tensor, rows: int) -> torch.Tensor:
        raise RuntimeError("bf16 path needs the cpu support")

    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", refuse)
    path = tmp_path / "k.json"
    words = [*TINY, "--patterns", "64:1:2x14", "--device", "cpu", "-o", str(path)]
    assert main(["bench", "kernels", *words]) == 0
    for panel in read(path)["panels"]:
        assert "needs the cpu support" in panel["absent"]["oneDNN, prepacked"]
