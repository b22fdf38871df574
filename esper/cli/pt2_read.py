"""Reading `.pt2` archives without running anything that the file says.

The members are read with `zipfile`, the graph description is sanitised (`pt2_check`), weights are
raw bytes or tensors loaded with `weights_only=True`, and only then does PyTorch's deserialiser see
them. `torch.export.load` itself is used only when the caller trusts the file.
"""

from __future__ import annotations

import io
import json
import logging
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import torch
from torch.export import ExportedProgram

from esper.cli.pt2_check import sanitise
from esper.errors import InputError
from esper.ir import kernels

_PAYLOAD = re.compile(r"(weight|tensor)_\d+")
_LARGEST_DESCRIPTION = 1 << 30


def read_program(file: IO[bytes], name: str) -> ExportedProgram:
    """The exported program in an archive written by `torch.export.save`.

    Args:
        file: seekable binary file.
        name: what to call it in messages.

    Raises:
        InputError: when a part is missing, damaged, or could run code.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            return _Reader(archive, name).program()
    except InputError:
        raise
    except (zipfile.BadZipFile, EOFError) as error:
        raise InputError(f"{name} is damaged: {first_line(error)}") from error
    except Exception as error:
        raise InputError(
            f"{name} is not a readable exported program: {first_line(error)}"
        ) from error


def load_trusted(file: IO[bytes], name: str) -> ExportedProgram:
    """`torch.export.load`, for a file whose origin the caller vouches for."""
    try:
        kernels.define_all()
        with quiet_torch():
            return torch.export.load(file)
    except Exception as error:
        raise InputError(
            f"{name} is not a readable exported program: {first_line(error)}"
        ) from error


def first_line(error: BaseException) -> str:
    """The first line of an error's text without its final stop, or the error's type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".")[:300] if lines else type(error).__name__


@contextmanager
def quiet_torch() -> Iterator[None]:
    """Keep PyTorch's export loggers from printing tracebacks that we report in one sentence."""
    loggers = [logging.getLogger(n) for n in ("torch.export", "torch._export")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class _Reader:
    def __init__(self, archive: zipfile.ZipFile, name: str) -> None:
        self.archive = archive
        self.name = name
        self.members: dict[str, zipfile.ZipInfo] = {}
        for info in archive.infolist():
            if info.compress_type != zipfile.ZIP_STORED:
                raise InputError(
                    f"{name} has a compressed member {info.filename!r}: it was not "
                    "written by torch.export.save"
                )
            path = info.filename.partition("/")[2]
            if path in self.members:
                raise InputError(f"{name} holds {info.filename!r} twice")
            self.members[path] = info

    def program(self) -> ExportedProgram:
        from torch._export.serde import schema
        from torch._export.serde.serialize import ExportedProgramDeserializer, _dict_to_dataclass

        self._refuse_code()
        model = self._model_name()
        with quiet_torch():
            safe = sanitise(self._json(f"models/{model}.json"), self.name)
            description = _dict_to_dataclass(schema.ExportedProgram, safe)  # type: ignore[no-untyped-call]
            program = ExportedProgramDeserializer().deserialize(
                description,
                self._tensors("data/weights", f"{model}_weights_config.json"),
                self._tensors("data/constants", f"{model}_constants_config.json"),
                self._examples(model),
            )
        assert isinstance(program, ExportedProgram)
        return program

    def _refuse_code(self) -> None:
        compiled = [path for path in self.members if path.startswith("data/aotinductor/")]
        if compiled:
            raise InputError(
                f"{self.name} holds compiled code (AOTInductor), which has no graph to optimise: "
                "give the exported program from which it was made"
            )

    def _model_name(self) -> str:
        names = [
            path.removeprefix("models/").removesuffix(".json")
            for path in self.members
            if path.startswith("models/") and path.endswith(".json")
        ]
        if not names:
            raise InputError(f"{self.name} is a .pt2 archive without a model")
        if "model" not in names and len(names) > 1:
            raise InputError(
                f"{self.name} holds {len(names)} models ({', '.join(names[:4])}), "
                "none called 'model': save the one you mean alone"
            )
        return "model" if "model" in names else names[0]

    def _bytes(self, path: str) -> bytes:
        if path not in self.members:
            raise InputError(f"{self.name} is damaged: it lacks {path}")
        return self.archive.read(self.members[path])

    def _json(self, path: str) -> Any:
        data = self._bytes(path)
        if len(data) > _LARGEST_DESCRIPTION:
            raise InputError(f"{self.name} has a graph description of {len(data)} bytes")
        return json.loads(data)

    def _tensors(self, folder: str, config: str) -> dict[str, torch.Tensor]:
        entries = self._json(f"{folder}/{config}")["config"]
        made: dict[str, torch.Tensor] = {}
        return {name: self._tensor(folder, name, entry, made) for name, entry in entries.items()}

    def _tensor(
        self, folder: str, name: str, entry: dict[str, Any], made: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """One tensor; entries that mean the same memory in the same way are one object.

        Tied parameters stay tied that way.
        """
        path = str(entry["path_name"])
        if not _PAYLOAD.fullmatch(path):
            raise InputError(
                f"{self.name} holds {name!r} as an object and not as a tensor: pass "
                "--allow-pickle only if you trust where the file comes from"
            )
        key = json.dumps(entry, sort_keys=True)
        if key not in made:
            made[key] = self._load(f"{folder}/{path}", name, entry)
        return made[key]

    def _load(self, path: str, name: str, entry: dict[str, Any]) -> torch.Tensor:
        data = self._bytes(path)
        if entry["use_pickle"]:
            tensor = torch.load(io.BytesIO(data), weights_only=True)
            if not isinstance(tensor, torch.Tensor):
                raise InputError(f"{self.name} holds {name!r} as {type(tensor).__name__}")
        else:
            tensor = self._strided(data, name, entry["tensor_meta"])
        if not entry["is_param"]:
            return tensor
        trained = bool((entry["tensor_meta"] or {}).get("requires_grad", tensor.requires_grad))
        return torch.nn.Parameter(tensor.detach(), requires_grad=trained)

    def _strided(self, data: bytes, name: str, meta: dict[str, Any]) -> torch.Tensor:
        from torch._export.serde.serialize import _SERIALIZE_TO_TORCH_DTYPE

        dtype = _SERIALIZE_TO_TORCH_DTYPE[meta["dtype"]]
        device = str(meta["device"]["type"])
        if device != "cpu" and not (device == "cuda" and torch.cuda.is_available()):
            raise InputError(
                f"{self.name} was exported on {device}, which this machine does not have: "
                "export it from the CPU"
            )
        sizes = [int(size["as_int"]) for size in meta["sizes"]]
        strides = [int(stride["as_int"]) for stride in meta["strides"]]
        offset = int(meta["storage_offset"]["as_int"])
        if not data:
            return torch.zeros(sizes, dtype=dtype, device=device)
        last = offset + sum(s * (n - 1) for s, n in zip(strides, sizes, strict=True))
        outside = min([offset, *strides, *sizes], default=0) < 0
        if outside or (last + 1) * dtype.itemsize > len(data):
            raise InputError(f"{self.name} is damaged: the bytes of {name!r} end too early")
        flat = torch.frombuffer(bytearray(data), dtype=dtype)
        return torch.as_strided(flat, sizes, strides, offset).to(device)

    def _examples(self, model: str) -> tuple[Any, Any] | None:
        """Example inputs, where they are plain tensors and containers."""
        path = f"data/sample_inputs/{model}.pt"
        if path not in self.members or not self.members[path].file_size:
            return None
        try:
            found = torch.load(io.BytesIO(self._bytes(path)), weights_only=True)
        except Exception as error:
            raise InputError(
                f"{self.name} holds example inputs that are not plain tensors "
                f"({first_line(error)[:120]}): save the program without them, or pass "
                "--allow-pickle if you trust where the file comes from"
            ) from error
        whole = isinstance(found, tuple) and len(found) == 2
        return (tuple(found[0]), dict(found[1])) if whole else None
