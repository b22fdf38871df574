"""`--inputs`, `--data`, `--eval`, `--finetune`, `--model`, `--max-loss`, `--dynamic`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from esper.cli.loaders import load_function
from esper.cli.specs import (
    make_data,
    make_evaluate,
    make_inputs,
    parse_dynamic,
    parse_max_loss,
)
from esper.errors import UsageError
from tests.cli.support import assert_one_sentence, small


class Text(nn.Module):
    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return input_ids if attention_mask is None else input_ids * attention_mask


def script(folder: Path, code: str, name: str = "user.py") -> str:
    path = folder / name
    path.write_text(code)
    return str(path)


def test_a_specification_gives_tensors_of_that_form() -> None:
    text = "input_ids=int64[8,64]:30,attention_mask=int64[8,64]:2"
    (ids, mask), kwargs = make_inputs(text, Text(), seed=0).example
    assert kwargs == {}
    assert ids.shape == mask.shape == (8, 64)
    assert ids.dtype is torch.int64
    assert ids.min() >= 0
    assert 20 < ids.max() < 30
    assert set(mask.unique().tolist()) == {0, 1}


def test_a_specification_is_the_same_for_the_same_seed() -> None:
    for text in ("x=float32[4,6]", "x=bfloat16[4,6]", "x=int8[4,6]:100", "x=bool[4,6]"):
        first, second, other = (
            make_inputs(text, small(), seed).example[0][0] for seed in (1, 1, 2)
        )
        assert torch.equal(first, second)
        assert not torch.equal(first, other)


def test_floats_are_normal() -> None:
    (x,), _ = make_inputs("x=float64[100,100]", small(), seed=0).example
    assert x.dtype is torch.float64
    assert abs(float(x.mean())) < 0.05
    assert abs(float(x.std()) - 1) < 0.05


def test_a_specification_out_of_order_or_wanted_so_is_passed_by_keyword() -> None:
    args, kwargs = make_inputs("attention_mask=int64[2]:2,input_ids=int64[2]:9", Text(), 0).example
    assert args == ()
    assert set(kwargs) == {"input_ids", "attention_mask"}
    args, kwargs = make_inputs("input_ids=int64[2]:9", Text(), 0, keywords=True).example
    assert (args, set(kwargs)) == ((), {"input_ids"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x", "takes FILE.py:name"),
        ("x=float32", "cannot be read at"),
        ("x=float32[2,3],", None),
        ("x=float32[2,3]y=float32[2]", "cannot be read at"),
        ("x=flaot32[2,3]", "did you mean 'float32'"),
        ("x=float32[2,0]", "positive sizes"),
        ("x=float32[2,a]", "positive sizes"),
        ("x=float32[2]:7", "leave out :7"),
        ("x=int64[2]", "exclusive maximum"),
        ("x=int64[2]:0", "positive integer"),
        ("x=int8[2]:999", "does not fit int8"),
        ("x=float32[2],x=float32[2]", "twice"),
        ("y=float32[2]", "the model takes no 'y'"),
    ],
)
def test_specifications_that_are_wrong(text: str, expected: str | None) -> None:
    if expected is None:
        make_inputs(text, small(), 0)
        return
    with pytest.raises(UsageError, match=None) as caught:
        make_inputs(text, small(), 0)
    assert expected in str(caught.value)
    assert_one_sentence(str(caught.value))


def test_names_are_checked_against_the_model() -> None:
    with pytest.raises(UsageError, match="did you mean 'input_ids'"):
        make_inputs("input_id=int64[2]:9", Text(), 0)
    with pytest.raises(UsageError, match="leaves out 'input_ids'"):
        make_inputs("attention_mask=int64[2]:2", Text(), 0)


def test_functions_give_inputs_in_any_usual_form(tmp_path: Path) -> None:
    code = """
import torch
x = torch.ones(2, 6)
def pair(): return (x,), {}
def bare(): return x
def several(): return x, x
def named(): return {"x": x}
def wrong(): return 3
def broken():
    return 1 / 0
def shapes(): return [(3.0, (x,), {}), (1.0, (x[:1],), {})]
def odd(): return [(3.0, (x,)), 7]
"""
    path = script(tmp_path, code)
    several = make_inputs(f"{path}:shapes", small(), 0)
    assert several.example[0][0].shape == (2, 6)
    assert len(several.timed) == 2
    with pytest.raises(UsageError, match="cannot be used"):
        make_inputs(f"{path}:odd", small(), 0)
    assert make_inputs(f"{path}:pair", small(), 0).example[0][0].shape == (2, 6)
    assert make_inputs(f"{path}:bare", small(), 0).example[0][0].shape == (2, 6)
    assert len(make_inputs(f"{path}:several", small(), 0).example[0]) == 2
    assert make_inputs(f"{path}:named", small(), 0).example[1]["x"].shape == (2, 6)
    with pytest.raises(UsageError, match="returned a int where"):
        make_inputs(f"{path}:wrong", small(), 0)
    with pytest.raises(UsageError, match=r"ZeroDivisionError.*at user.py:10 \(return 1 / 0\)"):
        make_inputs(f"{path}:broken", small(), 0)


def test_data_is_a_list_of_batches(tmp_path: Path) -> None:
    code = """
import torch
def batches():
    for i in range(3):
        yield (torch.ones(2, 6) * i,), {}
def tensors(): return [torch.ones(2, 6)]
def none(): return []
def number(): return 4
def half():
    yield torch.ones(2)
    raise OSError("disk gone")
def odd(): return [torch.ones(2), 5]
"""
    path = script(tmp_path, code)
    assert [float(args[0][0, 0]) for args, _ in make_data(f"{path}:batches")] == [0, 1, 2]
    assert len(make_data(f"{path}:tensors")) == 1
    for name, expected in [
        ("none", "no batches"),
        ("number", "returned a int"),
        ("half", "OSError: disk gone, at user.py:11"),
        ("odd", "batch 1"),
    ]:
        with pytest.raises(UsageError, match=expected) as caught:
            make_data(f"{path}:{name}")
        assert_one_sentence(str(caught.value))


def test_functions_that_are_not_there(tmp_path: Path) -> None:
    path = script(tmp_path, "def score(module): return 1.0\nvalue = 3\n")
    assert make_evaluate(f"{path}:score")(None) == 1.0
    for where, expected in [
        (f"{path}:scor", "did you mean 'score'"),
        (f"{path}:value", "is a int, not a function"),
        (f"{tmp_path}/usre.py:score", "did you mean 'user.py'"),
        (path, "takes FILE.py:name"),
        (f"{path}:", "takes FILE.py:name"),
        ("no.such.package:score", "there is no module 'no.such.package'"),
        ("json:lods", "did you mean 'loads'"),
    ]:
        with pytest.raises(UsageError) as caught:
            load_function(where, "--eval")
        assert expected in str(caught.value)
        assert str(caught.value).startswith("--eval")
        assert_one_sentence(str(caught.value))


def test_code_that_fails_while_imported_names_the_line(tmp_path: Path) -> None:
    for code, expected in [
        ("import json\n\nimport nowhere_at_all\n", "at user0.py:3 (import nowhere_at_all)"),
        ("x = = 3\n", "at user1.py:1 (x = = 3)"),
        ("\nraise ValueError('bad day')\n", "ValueError: bad day, at user2.py:2"),
    ]:
        path = script(tmp_path, code, f"user{expected.split('user')[1][0]}.py")
        with pytest.raises(UsageError) as caught:
            load_function(f"{path}:f", "--model")
        assert expected in str(caught.value)
        assert_one_sentence(str(caught.value))


def test_an_evaluation_takes_the_module(tmp_path: Path) -> None:
    path = script(tmp_path, "def score(): return 1.0\ndef two(a, b): return 1.0\n")
    for name in ("score", "two"):
        with pytest.raises(UsageError, match="must take the module"):
            make_evaluate(f"{path}:{name}")


def test_losses() -> None:
    assert parse_max_loss("1%").relative
    assert parse_max_loss("1%").amount == 0.01
    assert str(parse_max_loss("2.5%")) == "2.5%"
    assert not parse_max_loss("0.5").relative
    assert parse_max_loss("0.5").amount == 0.5
    for text in ("", "x", "-1", "nan", "inf%", "101%", "1%%"):
        with pytest.raises(UsageError, match="--max-loss takes"):
            parse_max_loss(text)


def test_dynamic_dimensions() -> None:
    assert parse_dynamic("ids:1,mask:1,ids:2") == {"ids": (1, 2), "mask": (1,)}
    for text in ("ids", "ids:x", ":1", "ids:1,,"):
        with pytest.raises(UsageError, match="--dynamic takes"):
            parse_dynamic(text)
