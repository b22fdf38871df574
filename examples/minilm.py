"""all-MiniLM-L6-v2, a sentence encoder, judged by how well it agrees with people.

    esper-opt DIRECTORY --inputs examples/minilm.py:inputs --data examples/minilm.py:calibration \
        --eval examples/minilm.py:evaluate --dynamic input_ids:1,attention_mask:1

where DIRECTORY is what `python examples/minilm.py` prints, together with the unmodified model's
figures. An embedding is the mean of the last hidden state over the real tokens; similarity is the
cosine. Three human judgements are compared with it, none of which the model is near to exhausting:

* WordSim-353: Spearman correlation over 353 word pairs, published 0.729
* SimLex-999: Spearman correlation over 999 word pairs, published 0.446
* Lee: Pearson correlation over the 1,225 pairs of 50 news items, published 0.656

`evaluate` reads at most 64 tokens of each text, so that a graph traced at 64 tokens can be judged
by the same rule as one with a dynamic sequence; Lee is then 0.649. `evaluate_full` reads the news
items to their end (154 tokens), gives the published figures, and needs a dynamic sequence. A
module that takes 64 tokens only gives the same value of `evaluate`, ten times more slowly, because
most texts are single words.
"""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works however it is loaded

from esper.errors import QualityError
from examples import assets

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BATCH = 8
LENGTH = 64
_ROWS = 32
_LENGTHS = (3, 6, 64, 160)  # nine words in ten are [CLS] word [SEP]

Encoder = Callable[..., Any]
Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Metrics:
    """Agreement with people, each a correlation in -1 to 1."""

    wordsim: float
    simlex: float
    lee: float

    @property
    def mean(self) -> float:
        """The plain mean of the three."""
        return (self.wordsim + self.simlex + self.lee) / 3


def factory() -> nn.Module:
    """The pretrained encoder in eval mode: float32, `scaled_dot_product_attention`."""
    from transformers import AutoModel
    from transformers.utils import logging as chatter

    logging: Any = chatter  # untyped there
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model: nn.Module = AutoModel.from_pretrained(
            assets.minilm(), attn_implementation="sdpa", dtype=torch.float32
        )
    finally:
        if shown:
            logging.enable_progress_bar()
    return model.eval()


def inputs() -> Call:
    """Eight news items cut at 64 tokens, without padding: int64 [8, 64] each."""
    long = [ids for ids in _encode(assets.calibration_text()) if len(ids) >= LENGTH]
    return (), _pad([_cut(ids, LENGTH) for ids in long[:BATCH]], BATCH, LENGTH)


def calibration(batches: int = 32) -> list[Call]:
    """Unlabelled batches of [8, 64], the same on every call, with no text that `evaluate` uses.

    Each holds four news items, two single sentences and two single words out of the background
    corpus, since the model is judged on words as well as on documents.
    """
    picked = _picked(batches)
    calls: list[Call] = []
    for index in range(batches):
        texts = [t for p in picked for t in p[index::batches]]
        calls.append(((), _pad([_cut(i, LENGTH) for i in _encode(texts)], BATCH, LENGTH)))
    return calls


def _picked(batches: int) -> tuple[list[str], list[str], list[str]]:
    """News items, sentences and words for so many calibration batches."""
    chooser = random.Random(0)
    judged = {text.lower() for text in judged_texts()}
    documents = [text.strip() for text in assets.calibration_text()]
    sentences = [part for text in documents for part in re.split(r"(?<=[.!?]) ", text)]
    words = sorted({word.lower() for text in documents for word in re.findall("[A-Za-z]+", text)})
    picked: list[list[str]] = []
    for pool, count in ((documents, 4), (sentences, 2), (words, 2)):
        unseen = [text for text in dict.fromkeys(pool) if text.lower() not in judged]
        picked.append(chooser.choices(unseen, k=count * batches))
    return picked[0], picked[1], picked[2]


def held_out(batches: int = 32) -> list[str]:
    """News items that neither `calibration(batches)` nor the metrics read, not even in part."""
    documents, sentences, _ = _picked(batches)
    read = {*documents, *(text.strip() for text in assets.lee()[0])}
    rest = [text.strip() for text in assets.calibration_text()]
    return [t for t in dict.fromkeys(rest) if t not in read and not any(s in t for s in sentences)]


def agreement(reference: Encoder, module: Encoder, texts: list[str]) -> tuple[float, float]:
    """How far a module's picture of texts is that of another.

    Returns:
        The Pearson correlation of the cosines of all pairs of texts, and the mean cosine between
        the two embeddings of one text. Both are 1 for equal modules.
    """
    tokens = list(zip(texts, _encode(texts), strict=True))
    left, right = (
        np.stack([vectors[text] for text in texts])
        for vectors in (_embed(each, LENGTH, tokens) for each in (reference, module))
    )
    above = np.triu_indices(len(texts), 1)
    return (
        pearson((left @ left.T)[above], (right @ right.T)[above]),
        float((left * right).sum(1).mean()),
    )


def evaluate(module: Encoder) -> float:
    """Mean of the three correlations, reading at most 64 tokens of each text."""
    return metrics(module).mean


def evaluate_full(module: Encoder) -> float:
    """Mean of the three correlations over whole texts; raises on a graph fixed at 64 tokens."""
    return metrics(module, limit=_LENGTHS[-1]).mean


def metrics(module: Encoder, limit: int = LENGTH) -> Metrics:
    """The three correlations for `module(input_ids=, attention_mask=)`.

    Its output must hold `last_hidden_state` [batch, tokens, width] as an attribute, a key, or the
    first element. The module is not modified, and the order of evaluation is fixed.
    """
    vectors = _embed(module, limit, judged_tokens())
    documents, judged = assets.lee()
    matrix = np.stack([vectors[text] for text in documents])
    above = np.triu_indices(len(documents), 1)
    return Metrics(
        wordsim=_word_agreement(vectors, assets.wordsim353()),
        simlex=_word_agreement(vectors, assets.simlex999()),
        lee=pearson((matrix @ matrix.T)[above], judged[above]),
    )


def _word_agreement(
    vectors: Mapping[str, NDArray[np.float64]], pairs: list[tuple[str, str, float]]
) -> float:
    similarity = [float(vectors[first] @ vectors[second]) for first, second, _ in pairs]
    return spearman(np.array(similarity), np.array([score for _, _, score in pairs]))


def pearson(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Pearson correlation of two vectors; NaN when either is constant or holds NaN."""
    x, y = x - x.mean(), y - y.mean()
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / scale if scale else float("nan")


def spearman(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Spearman correlation of two vectors: Pearson of their ranks, ties sharing the mean rank."""
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return float("nan")
    return pearson(_ranks(x), _ranks(y))


def _ranks(x: NDArray[np.float64]) -> NDArray[np.float64]:
    _, position, count = np.unique(x, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    means: NDArray[np.float64] = last - (count - 1) / 2
    return means[position]


# ---- from text to unit vectors


def _embed(
    module: Encoder, limit: int, texts: list[tuple[str, list[int]]]
) -> dict[str, NDArray[np.float64]]:
    """Unit vector of every text, cut at `limit` tokens."""
    tokens = [(text, _cut(ids, limit)) for text, ids in texts]
    rows, fixed = _shape_taken(module)
    if fixed and limit > LENGTH:
        raise QualityError(
            f"texts of up to {limit} tokens cannot be given to a graph fixed at {LENGTH}: trace "
            "it with --dynamic input_ids:1,attention_mask:1, or use `evaluate`"
        )
    groups: dict[int, list[tuple[str, list[int]]]] = {}
    for text, ids in tokens:
        length = LENGTH if fixed else next(size for size in _LENGTHS if size >= len(ids))
        groups.setdefault(length, []).append((text, ids))
    vectors: dict[str, NDArray[np.float64]] = {}
    for length, group in groups.items():
        for start in range(0, len(group), rows):
            part = group[start : start + rows]
            pooled = _pooled(module, _pad([ids for _, ids in part], rows, length))
            for (text, _), vector in zip(part, pooled, strict=False):
                vectors[text] = vector
    return vectors


def _pooled(module: Encoder, batch: dict[str, Tensor]) -> NDArray[np.float64]:
    """Mean over the real tokens, scaled to length 1: float64 [rows, width]."""
    hidden = _call(module, batch).to("cpu", torch.float64)
    mask = batch["attention_mask"].to(torch.float64)[..., None]
    mean = (hidden * mask).sum(1) / mask.sum(1)
    unit: NDArray[np.float64] = (mean / mean.norm(dim=1, keepdim=True)).numpy()
    return unit


def _call(module: Encoder, batch: dict[str, Tensor]) -> Tensor:
    device = torch.device("cpu")
    if isinstance(module, nn.Module):
        device = next((p.device for p in module.parameters()), device)
    with torch.no_grad():
        output = module(**{name: value.to(device) for name, value in batch.items()})
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        hidden = output["last_hidden_state"]
    else:
        hidden = getattr(output, "last_hidden_state", None)
        hidden = output[0] if hidden is None else hidden
    if not isinstance(hidden, Tensor):
        raise QualityError(f"the module's output holds no tensor but {type(hidden).__name__}")
    return hidden


def _shape_taken(module: Encoder) -> tuple[int, bool]:
    """Rows per call, and whether the sequence length is fixed, found by trying.

    What the shapes change is the time, not the value; an error that is not about shapes is raised
    by the shape of `inputs()`, which every module must take.
    """
    for rows, length in ((_ROWS, _LENGTHS[0]), (_ROWS, LENGTH)):
        try:
            _call(module, _pad([], rows, length))
        except Exception:  # noqa: BLE001  any backend's own way of refusing a shape
            continue
        return rows, length == LENGTH
    return BATCH, True


def _pad(tokens: list[list[int]], rows: int, length: int) -> dict[str, Tensor]:
    """int64 [rows, length] ids and mask; rows beyond `tokens` hold one token, to be ignored."""
    ids = torch.zeros(rows, length, dtype=torch.int64)
    mask = torch.zeros(rows, length, dtype=torch.int64)
    mask[len(tokens) :, 0] = 1
    for row, sequence in enumerate(tokens):
        ids[row, : len(sequence)] = torch.tensor(sequence)
        mask[row, : len(sequence)] = 1
    return {"input_ids": ids, "attention_mask": mask}


def _cut(ids: list[int], limit: int) -> list[int]:
    """The first `limit` tokens, ending with the separator as the tokenizer does it."""
    return ids if len(ids) <= limit else [*ids[: limit - 1], ids[-1]]


@cache
def _tokenizer() -> Tokenizer:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(assets.minilm() / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _encode(texts: list[str]) -> list[list[int]]:
    return [encoding.ids for encoding in _tokenizer().encode_batch(texts)]


def judged_texts() -> list[str]:
    """Every text the metrics read, once each: 1,100 or so words, then the news items."""
    pairs = assets.wordsim353() + assets.simlex999()
    words = [word for first, second, _ in pairs for word in (first, second)]
    return list(dict.fromkeys(words + assets.lee()[0]))


@cache
def judged_tokens() -> list[tuple[str, list[int]]]:
    """`judged_texts` with the token ids of each, not cut."""
    texts = judged_texts()
    return list(zip(texts, _encode(texts), strict=True))


if __name__ == "__main__":
    print(assets.minilm())
    print(f"first {LENGTH} tokens  {metrics(factory())}")
    print(f"whole texts      {metrics(factory(), limit=_LENGTHS[-1])}")
