"""What the graph description inside a `.pt2` archive may say.

`torch.export.load` trusts its file. Besides pickled members, the JSON itself can run code: symbolic
sizes go through `sympy.sympify` (which evaluates Python), operator names are looked up as
attributes of the `torch` module and called, names become identifiers in generated source, guard
strings are compiled, and tree specs may import modules. `sanitise` removes what is not needed to
run the graph and refuses everything else that is not plainly data.

Source: torch/_export/serde/serialize.py, torch/export/_unlift.py, torch/fx/graph.py and
torch/utils/_pytree.py of PyTorch 2.11 to 2.13.
"""

from __future__ import annotations

import ast
import json
import re
from typing import Any

from esper.errors import InputError
from esper.ir import kernels

_PLAIN = re.compile(r"[\w.\-]*", re.ASCII)
_SPACED = re.compile(r"[\w.\- ]*", re.ASCII)
_DEVICE = re.compile(r"[a-z]+(:\d+)?")
_DUNDER = re.compile(r"(^|\.)__")

#: Metadata that this project reads; the rest (source functions, custom data) is dropped.
_KEPT_METADATA = ("stack_trace", "nn_module_stack")

#: Namespaces of operators that only compute.
_NAMESPACES = ("aten", "prims", "quantized_decomposed", "torchvision", "esper")

#: Operators in these namespaces that reach outside: they open or create files.
_OUTSIDE = ("aten.from_file", "aten.save")

_HIGHER_ORDER = (
    "associative_scan",
    "cond",
    "map_impl",
    "out_dtype",
    "scan",
    "while_loop",
    "wrap_with_autocast",
    "wrap_with_set_grad_enabled",
)

_OPERATOR = tuple(
    "_operator." + name
    for name in (
        "add and_ eq floordiv ge getitem gt invert le lshift lt mod mul ne neg not_ or_ pos pow "
        "rshift sub truediv xor"
    ).split()
)
_MATH = tuple("math." + name for name in "ceil floor trunc sqrt pow".split())
_SYMBOLIC = tuple(
    "torch." + name
    for name in (
        "sym_float sym_int sym_ite sym_max sym_min sym_not sym_sum sym_fresh_size "
        "_sym_sqrt _sym_log2 sym_sqrt"
    ).split()
)

#: Functions in symbolic sizes: those that serialisation writes, and sympy's own.
_FUNCTIONS = frozenset(
    (
        "FloorDiv ModularIndexing Where PythonMod Mod CleanDiv CeilToInt FloorToInt CeilDiv LShift "
        "RShift PowByNatural FloatPow FloatTrueDiv IntTrueDiv IsNonOverlappingAndDenseIndicator "
        "TruncToFloat TruncToInt RoundToInt RoundDecimal ToFloat Identity Max Min floor ceiling "
        "Abs Piecewise Eq Ne Lt Le Gt Ge And Or Not Integer Float Rational Symbol Add Mul "
        "Pow Tuple Equality Unequality StrictLessThan LessThan StrictGreaterThan GreaterThan "
        "ExprCondPair"
    ).split()
)
_SYMBOL = re.compile(r"[a-z]+\d+|True|False|true|false|oo|int_oo", re.ASCII)
_NUMBER = re.compile(r"-?\d+(\.\d*)?(e[+-]?\d{1,3})?", re.ASCII)
_EXPRESSION_NODES = (
    ast.Expression,
    ast.BinOp,
    ast.UnaryOp,
    ast.BoolOp,
    ast.Compare,
    ast.Call,
    ast.Name,
    ast.Constant,
    ast.Tuple,
    ast.operator,
    ast.unaryop,
    ast.boolop,
    ast.cmpop,
    ast.expr_context,
)
_ASSUMPTIONS = ("integer", "negative", "nonnegative", "positive", "real", "zero", "finite")
_LONGEST_EXPRESSION = 4000
_POWERS = ("Pow", "PowByNatural", "FloatPow", "LShift")
_LARGEST_EXPONENT = 16

_BUILTIN_TREES = (
    "builtins.tuple",
    "builtins.list",
    "builtins.dict",
    "collections.namedtuple",
    "collections.OrderedDict",
    "collections.deque",
    "torch.fx.immutable_collections.immutable_list",
    "torch.fx.immutable_collections.immutable_dict",
)


def sanitise(program: Any, where: str) -> dict[str, Any]:
    """A graph description that is safe to deserialise.

    Args:
        program: parsed `models/NAME.json`.
        where: name of the file, for messages.

    Returns:
        A copy without guards, custom metadata and other parts that are not needed.

    Raises:
        InputError: naming the suspicious part.
    """
    if not isinstance(program, dict) or not isinstance(program.get("graph_module"), dict):
        raise InputError(f"{where} is not an exported program: its graph description is malformed")
    program = dict(program)
    if "guards_code" in program:
        program["guards_code"] = []
    program["graph_module"] = {**program["graph_module"], "metadata": {}}
    cleaned = _clean(program, "", where)
    assert isinstance(cleaned, dict)
    return cleaned


def _clean(value: Any, key: str, where: str) -> Any:
    if isinstance(value, dict):
        if key == "metadata":
            return _metadata(value)
        if key in ("as_custom_obj", "custom_obj"):
            _refuse(where, f"a custom object {str(value.get('class_fqn', ''))[:40]!r}")
        for name in value:
            _check(_PLAIN.fullmatch(str(name)) is not None, where, f"the name {name!r}")
        return {name: _clean(item, name, where) for name, item in value.items()}
    if isinstance(value, list):
        return [_clean(item, key, where) for item in value]
    if isinstance(value, str):
        _string(value, key, where)
    return value


def _metadata(value: dict[str, Any]) -> dict[str, str]:
    kept = {k: v for k in _KEPT_METADATA if isinstance(v := value.get(k), str)}
    stack = kept.get("nn_module_stack", "")
    if not all(_three_parts(item) for item in stack.split(";") if stack):
        del kept["nn_module_stack"]
    return kept


def _three_parts(item: str) -> bool:
    depth = commas = 0
    for letter in item:
        depth += (letter in "[(") - (letter in ")]")
        commas += letter == "," and depth == 0
    return commas == 2


def _string(value: str, key: str, where: str) -> None:
    if key == "expr_str":
        check_expression(value, where)
    elif key in ("target", "as_operator"):
        check_operator(value, where)
    elif key in ("in_spec", "out_spec"):
        check_tree(value, where, names=key == "in_spec")
    elif key in ("as_string", "as_strings", "equation", "torch_version"):
        return  # reaches the graph only through repr()
    elif key == "type":
        _check(_DEVICE.fullmatch(value) is not None, where, f"the device {value[:40]!r}")
    elif key == "fqn":
        _check(_PLAIN.fullmatch(value.replace("@", "")) is not None, where, f"the name {value!r}")
    else:
        plain = _PLAIN.fullmatch(value) is not None
        _check(plain and not _DUNDER.search(value), where, f"the name {value[:60]!r}")


def check_expression(text: str, where: str) -> None:
    """Accept arithmetic on symbols such as `2*s0 + FloorDiv(s1, 2)`; raise InputError otherwise."""
    shown = f"the symbolic size {text[:60]!r}"
    if len(text) > _LONGEST_EXPRESSION:
        _refuse(where, shown)
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        _refuse(where, shown)
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    quoted: set[int] = set()  # 's77' in Symbol('s77', positive=True)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _is_quoted(node):
            quoted.add(id(node.args[0]))
    for node in ast.walk(tree):
        _check(id(node) in quoted or _harmless(node, id(node) in called), where, shown)


def _harmless(node: ast.AST, called: bool) -> bool:
    if isinstance(node, ast.Name):
        return node.id in _FUNCTIONS if called else _SYMBOL.fullmatch(node.id) is not None
    if isinstance(node, ast.Call):
        if not isinstance(node.func, ast.Name):
            return False
        return node.func.id not in _POWERS or (len(node.args) == 2 and _small(node.args[1]))
    if isinstance(node, ast.keyword):
        value = node.value.value if isinstance(node.value, ast.Constant) else None
        wanted = bool if node.arg in _ASSUMPTIONS else int if node.arg == "precision" else None
        return wanted is not None and type(value) is wanted
    if isinstance(node, ast.Constant):
        return type(node.value) in (int, float, bool)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        return _small(node.right)
    return isinstance(node, _EXPRESSION_NODES)


def _small(power: ast.expr) -> bool:
    """Whether an exponent is a small integer: huge ones would take for ever."""
    if isinstance(power, ast.UnaryOp):
        power = power.operand
    if isinstance(power, ast.Call) and isinstance(power.func, ast.Name):
        power = power.args[0] if power.func.id == "Integer" and power.args else power
    if not isinstance(power, ast.Constant) or not isinstance(power.value, int):
        return False
    return power.value <= _LARGEST_EXPONENT


def _is_quoted(node: ast.Call) -> bool:
    if not isinstance(node.func, ast.Name) or len(node.args) != 1:
        return False
    pattern = {"Symbol": _SYMBOL, "Float": _NUMBER}.get(node.func.id)
    text = node.args[0]
    if pattern is None or not isinstance(text, ast.Constant) or not isinstance(text.value, str):
        return False
    return pattern.fullmatch(text.value) is not None


def check_operator(name: str, where: str) -> None:
    """Accept operators that only compute; raise InputError naming any other."""
    if name in _OPERATOR or name in _MATH or name in _SYMBOLIC:
        return
    parts = name.split(".")
    shown = f"the operator {name[:80]!r}"
    fine = (
        len(parts) in (4, 5)
        and parts[:2] == ["torch", "ops"]
        and _PLAIN.fullmatch(name) is not None
        and not any(part.startswith("__") and not part.endswith("__") for part in parts)
    )
    _check(fine, where, shown)
    if parts[2] == "higher_order":
        _check(len(parts) == 4 and parts[3] in _HIGHER_ORDER, where, shown)
        return
    allowed = parts[2] in _NAMESPACES and ".".join(parts[2:4]) not in _OUTSIDE
    _check(allowed, where, shown)
    import torch

    kernels.library(parts[2])  # defines the ops of an installed library of kernels
    overload = getattr(getattr(torch.ops, parts[2]), parts[3], None)
    overload = getattr(overload, parts[4] if len(parts) == 5 else "default", None)
    _check(
        isinstance(overload, torch._ops.OpOverload), where, f"{shown}, which does not exist here"
    )


def check_tree(text: str, where: str, *, names: bool) -> None:
    """Accept tree specs of plain containers; raise InputError naming any other.

    Args:
        names: whether the keys become argument names in generated code.
    """
    try:
        spec = json.loads(text) if text else None
    except (ValueError, RecursionError):
        _refuse(where, "a malformed tree specification")
    if spec is None:
        return
    _check(isinstance(spec, list) and len(spec) == 2 and isinstance(spec[1], dict), where, "a tree")
    _tree(spec[1], where, names)


def _tree(node: Any, where: str, names: bool) -> None:
    _check(isinstance(node, dict), where, "a malformed tree specification")
    kind, context = node.get("type"), node.get("context")
    if kind is not None:
        if kind not in _BUILTIN_TREES:
            _structured(str(kind), where)
        if isinstance(context, str):
            try:
                context = json.loads(context)
            except (ValueError, RecursionError):
                _check(_SPACED.fullmatch(context) is not None, where, f"the key {context[:40]!r}")
        _context(context, where, names)
    for child in node.get("children_spec", ()):
        _tree(child, where, names)


def _context(value: Any, where: str, names: bool) -> None:
    if isinstance(value, dict):
        _refuse(where, f"a tree that would import {str(value)[:60]}")
    if isinstance(value, list):
        for item in value:
            _context(item, where, names)
    if isinstance(value, str) and names:
        _check(_SPACED.fullmatch(value) is not None, where, f"the argument name {value[:60]!r}")


def _structured(kind: str, where: str) -> None:
    """Outputs of transformers models are known once that library is imported; no others are."""
    if kind.startswith("transformers.modeling_outputs."):
        try:
            import transformers.modeling_outputs  # noqa: F401
        except ImportError:
            raise InputError(f"{where} returns a {kind}: install transformers to read it") from None
        return
    raise InputError(
        f"{where} holds a value of type {kind!r}, which is not a plain container: pass "
        "--allow-pickle if you trust the file"
    )


def _check(fine: bool, where: str, what: str) -> None:
    if not fine:
        _refuse(where, what)


def _refuse(where: str, what: str) -> Any:
    raise InputError(
        f"{where} holds {what}, which an exported program does not need and which could run code: "
        "pass --allow-pickle only if you trust where the file comes from"
    )
