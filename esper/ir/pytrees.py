"""Structures of inputs and outputs in files, and a stand-in for output classes not loaded.

A saved output class (a `ModelOutput`, a registered dataclass, a named tuple) is named in the
file, and found again only among the classes that are registered with `torch.utils._pytree` in
the loading process. Otherwise outputs come as `NamedOutput`. Nothing is imported by name.
"""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from typing import Any

from torch.utils import _pytree as pytree

from esper.ir.codec import CodecError

_MAX_DEPTH = 32


class NamedOutput(dict[str, Any]):
    """Outputs by name in order; also by attribute, and by position with an int or slice.

    Stands in for a class of the model's library when that class is not registered.
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return dict.__getitem__(self, name)
        except KeyError:
            raise AttributeError(f"there is no output {name!r}; there are {list(self)}") from None

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, (int, slice)):
            return tuple(self.values())[key]
        return dict.__getitem__(self, key)


class _Standin:
    """Type of nodes in a TreeSpec that unflatten to NamedOutput; context: (class name, facts)."""


def _flatten(value: NamedOutput) -> tuple[list[Any], list[str]]:
    return list(value.values()), list(value.keys())


def _unflatten(leaves: Any, context: Any) -> NamedOutput:
    return NamedOutput(zip(context, leaves, strict=True))


def _unflatten_standin(leaves: Any, context: Any) -> NamedOutput:
    _, _, names, missing = context
    output = NamedOutput(zip(names, leaves, strict=True))
    output.update(dict.fromkeys(missing))
    return output


def _never_flattened(value: _Standin) -> tuple[list[Any], Any]:
    raise TypeError("stand-ins occur in specifications only")


pytree.register_pytree_node(
    NamedOutput, _flatten, _unflatten, serialized_type_name="esper.NamedOutput"
)
pytree.register_pytree_node(
    _Standin, _never_flattened, _unflatten_standin, serialized_type_name="esper.NamedOutputSpec"
)


def encode_spec(spec: pytree.TreeSpec) -> Any:
    """JSON of a TreeSpec, the same whether a class or its stand-in is in it.

    Raises CodecError for a class whose structure is no list of field names.
    """
    if spec.is_leaf():
        return "*"
    children = [encode_spec(child) for child in spec.children()]
    kind, context = spec.type, spec.context
    if kind is tuple or kind is list:
        return [kind.__name__, *children]
    if kind in (dict, OrderedDict):
        if not all(type(key) in (str, int) for key in context):
            raise CodecError("a dictionary among inputs or outputs has keys that are no strings")
        return [kind.__name__, list(context), *children]
    if kind is _Standin:
        style, name, names, missing = context
    elif kind is NamedOutput:
        style, name, names, missing = "keys", "esper.NamedOutput", context, []
    elif kind is namedtuple:
        style, name, missing = "tuple", context.__name__, []
        names = list(context._fields)
    elif _is_names(context):
        style, name, names, missing = "keys", _registered_name(kind), context, []
    elif isinstance(context, (list, tuple)) and len(context) == 2 and all(map(_is_names, context)):
        style, name = "fields", _registered_name(kind)
        names, missing = context
    else:
        raise CodecError(f"the class {kind.__name__} among inputs or outputs cannot be saved")
    return ["class", [style, name, list(names), list(missing)], *children]


def _is_names(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(
        type(name) is str and name.isidentifier() for name in value
    )


def _registered_name(kind: type) -> str:
    known = pytree.SUPPORTED_SERIALIZED_TYPES.get(kind)
    name = getattr(known, "serialized_type_name", None)
    return name if isinstance(name, str) else f"{kind.__module__}.{kind.__qualname__}"


def decode_spec(tree: Any, depth: int = 0) -> pytree.TreeSpec:
    """Inverse of `encode_spec`. Raises CodecError."""
    if tree == "*":
        return pytree.tree_structure(0)
    if depth > _MAX_DEPTH or type(tree) is not list or not tree:
        raise CodecError("the structure of inputs or outputs is not encoded as it should be")
    kind = tree[0]
    skip = 1 if kind in ("tuple", "list") else 2
    children = [decode_spec(child, depth + 1) for child in tree[skip:]]
    if kind == "tuple":
        return pytree.TreeSpec(tuple, None, children)
    if kind == "list":
        return pytree.TreeSpec(list, None, children)
    if kind in ("dict", "OrderedDict") and len(tree) > 1:
        keys = tree[1]
        if (
            type(keys) is list
            and all(type(key) in (str, int) for key in keys)
            and len(set(keys)) == len(keys) == len(children)
        ):
            return pytree.TreeSpec(dict if kind == "dict" else OrderedDict, keys, children)
    if kind == "class" and len(tree) > 1:
        return _decode_class(tree[1], children)
    raise CodecError("the structure of inputs or outputs is not encoded as it should be")


def _decode_class(facts: Any, children: list[pytree.TreeSpec]) -> pytree.TreeSpec:
    if (
        type(facts) is not list
        or len(facts) != 4
        or facts[0] not in ("keys", "fields", "tuple")
        or type(facts[1]) is not str
        or not _is_names(facts[2])
        or not _is_names(facts[3])
        or len(facts[2]) != len(children)
        or len({*facts[2], *facts[3]}) != len(facts[2]) + len(facts[3])
    ):
        raise CodecError("a class among inputs or outputs is not encoded as it should be")
    style, name, names, missing = facts
    found = pytree.SERIALIZED_TYPE_TO_PYTHON_TYPE.get(name) if style != "tuple" else None
    if found is NamedOutput and style == "keys":
        return pytree.TreeSpec(NamedOutput, names, children)
    if found is not None and _fits(found, style, names, missing):
        context = names if style == "keys" else [names, missing]
        return pytree.TreeSpec(found, context, children)
    return pytree.TreeSpec(_Standin, (style, name, names, missing), children)


def _fits(kind: type, style: str, names: list[str], missing: list[str]) -> bool:
    """Whether a registered class has the fields that the file names."""
    import dataclasses

    if not dataclasses.is_dataclass(kind):
        return False
    own = {field.name for field in dataclasses.fields(kind)}
    if not {*names, *missing} <= own:
        return False
    # Mappings such as ModelOutput rebuild themselves from keys, plain dataclasses from fields.
    return issubclass(kind, dict) == (style == "keys")
