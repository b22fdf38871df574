"""Model directories in the Hugging Face layout: `config.json` and safetensors.

Only classes that come with the installed `transformers` are used; code in the directory is never
run, nothing is fetched, and only safetensors weights are read.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from esper.cli.pt2_read import first_line
from esper.errors import InputError


def read_directory(path: str, name: str) -> tuple[torch.nn.Module, str, tuple[str, ...]]:
    """The model in evaluation mode, how `--inputs` could look for it, and notes.

    Raises InputError naming the file that is missing, damaged or does not fit.
    """
    config = _config(path, name)
    if not any(file.endswith(".safetensors") for file in os.listdir(path)):
        raise InputError(
            f"{name} has no safetensors weights: save the model again with "
            "save_pretrained(..., safe_serialization=True)"
        )
    module, notes = _load(path, name, config)
    return module.eval(), _hint(config), notes


def _config(path: str, name: str) -> dict[str, Any]:
    file = os.path.join(path, "config.json")
    if not os.path.isfile(file):
        raise InputError(
            f"{name} is a directory without config.json: a model directory has config.json and "
            "safetensors weights"
        )
    try:
        with open(file, encoding="utf-8") as stream:
            config = json.load(stream)
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read: {first_line(error)}") from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise InputError(f"{file} names no model_type")
    return config


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what transformers and packages that it imports log; `_check` tells what matters."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


@_quiet()
def _load(path: str, name: str, config: dict[str, Any]) -> tuple[torch.nn.Module, tuple[str, ...]]:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        import transformers
    except ImportError:
        raise InputError(
            f"{name} is a Hugging Face model: install transformers to read it"
        ) from None
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    options = {"local_files_only": True, "trust_remote_code": False}
    try:
        settings = transformers.AutoConfig.from_pretrained(path, **options)
        if hasattr(settings, "use_cache"):
            settings.use_cache = False  # a cache is state that an exported graph cannot keep
        loader = _class(transformers, config)
        module, info = loader.from_pretrained(
            path,
            config=settings,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **({"local_files_only": True} if loader is not transformers.AutoModel else options),
        )
    except Exception as error:
        raise InputError(f"{name} cannot be loaded: {first_line(error)}") from error
    return module, _check(info, name)


def _class(transformers: Any, config: dict[str, Any]) -> Any:
    """The class that `architectures` names, if the library has it; the headless model otherwise."""
    for architecture in config.get("architectures") or ():
        found = getattr(transformers, str(architecture), None)
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
            return found
    return transformers.AutoModel


def _check(info: dict[str, Any], name: str) -> tuple[str, ...]:
    missing = sorted(info.get("missing_keys") or ())
    mismatched = [
        item[0] if isinstance(item, tuple) else str(item)
        for item in info.get("mismatched_keys") or ()
    ]
    errors = list(info.get("error_msgs") or ())
    if missing or mismatched or errors:
        parts = [f"{key} is missing" for key in missing[:3]]
        parts += [f"{key} has another shape" for key in sorted(mismatched)[:3]]
        parts += [str(error).splitlines()[0] for error in errors[:1]]
        raise InputError(f"the weights in {name} do not fit its config.json: {'; '.join(parts)}")
    unused = sorted(info.get("unexpected_keys") or ())
    if not unused:
        return ()
    shown = ", ".join(unused[:3]) + (", ..." if len(unused) > 3 else "")
    return (f"{len(unused)} tensors of {name} are not part of the model: {shown}",)


def _hint(config: dict[str, Any]) -> str:
    if "vocab_size" in config:
        vocabulary = int(config["vocab_size"])
        return f"input_ids=int64[8,64]:{vocabulary},attention_mask=int64[8,64]:2"
    size = config.get("image_size", 224)
    channels = config.get("num_channels", 3)
    size = size[0] if isinstance(size, list) else size
    return f"pixel_values=float32[8,{channels},{size},{size}]"
