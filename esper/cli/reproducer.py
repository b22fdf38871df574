"""`--reproducer` and `--run-reproducer`: a rewrite that broke, with the model as it was before.

A reproducer is a directory: `model.esper` (the model just before the proposal), `reproducer.json`
(the proposal and where it came from), and `payload.safetensors` where the proposal names tensors.
Running it again applies that one proposal with the whole graph verified around it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import ValidationError

from esper.cli.outputs import write_bytes, write_text
from esper.errors import EsperError, InputError, VerificationError
from esper.instruments import Instrument
from esper.propose import parse

if TYPE_CHECKING:
    from esper.ir.model import Model
    from esper.passbase import Pass
    from esper.records import Record

_DEFAULT = "esper-reproducer"
_FILE = "reproducer.json"
_MODEL = "model.esper"
_PAYLOAD = "payload.safetensors"


class Reproducer(Instrument):
    """Saves the first proposal that broke, and the model just before it.

    Args:
        directory: made when something breaks; by default `esper-reproducer` in the present one.
        command: the command line, kept for the reader.
    """

    name: ClassVar[str] = "reproducer"

    def __init__(self, directory: str | None, command: str) -> None:
        self.directory = Path(directory or _DEFAULT)
        self.command = command
        self.failure: Record | None = None
        self.written: Path | None = None
        self._problem = ""

    def after_proposal(self, model: Model, pass_: Pass | None, record: Record) -> None:
        if record.kind != "failure" or self.failure is not None:
            return
        self.failure = record  # the manager has rolled back: the model is as it was before
        try:
            self._save(model, record)
        except (EsperError, OSError) as error:
            self._problem = f"; no reproducer could be written ({error})"

    def raise_if_failed(self) -> None:
        """Raise VerificationError when a proposal broke."""
        if self.failure is None:
            return
        record = self.failure
        what = record.proposal.type if record.proposal is not None else record.pass_name
        where = f"; see {self.written}" if self.written is not None else self._problem
        reason = " ".join(record.reason.split()).rstrip(".")
        raise VerificationError(
            f"{what} broke and was rolled back, and no model was written: {reason}{where}"
        )

    def _save(self, model: Model, record: Record) -> None:
        import esper
        from esper.ir.artifact import save

        self.directory.mkdir(parents=True, exist_ok=True)
        save(model, self.directory / _MODEL)
        self._save_payload(model, record)
        assert record.proposal is not None
        text = {
            "proposal": record.proposal.model_dump(mode="json"),
            "record": record.model_dump(mode="json"),
            "command": self.command,
            "versions": {"esper": esper.__version__, "torch": str(torch.__version__)},
        }
        write_text(self.directory / _FILE, json.dumps(text, indent=2) + "\n")
        self.written = self.directory / _FILE

    def _save_payload(self, model: Model, record: Record) -> None:
        from safetensors.torch import save

        assert record.proposal is not None
        payload = model.payloads.get(record.proposal.payload)
        if payload:
            tensors = {k: v.detach().contiguous().clone() for k, v in payload.items()}
            write_bytes(self.directory / _PAYLOAD, save(tensors))


def run_again(path: str) -> Record:
    """Apply the proposal of a reproducer to its model, verifying the whole graph.

    Raises InputError when the file is no reproducer.
    """
    from esper.ir.artifact import load
    from esper.manager import PassManager

    file = Path(path)
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        proposal = parse(found["proposal"])
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        raise InputError(f"{path} is no reproducer: it holds no proposal") from error
    model = load(file.parent / _MODEL)
    payload = file.parent / _PAYLOAD
    if os.path.exists(payload):
        model.payloads[proposal.payload] = _tensors(payload)
    return PassManager(model, verify="full").apply(proposal)


def _tensors(path: Path) -> dict[str, Any]:
    from esper.cli.weights import read_safetensors

    return dict(read_safetensors(str(path), str(path)))
