"""What PyTorch's ONNX converter (2.11 to 2.13) cannot read of an exported graph, respelled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from esper.ir.ancestors import ancestors

aten = torch.ops.aten

_ASSERTIONS = {aten._assert_scalar.default, aten._assert_async.msg, aten._assert_async.default}
_READS = {aten.item.default, aten._local_scalar_dense.default}


def respell(program: torch.export.ExportedProgram) -> None:
    """Change an exported program in place, so that the converter takes it.

    `1.0 - integers` casts the integers first, which the converter forgets. Assertions about values
    go, since ONNX has none and the converter has no words for what they read; those that bound a
    size which the graph uses stay.
    """
    _cast(program.graph)
    _drop_assertions(program.graph)
    program.graph.lint()
    program.graph_module.recompile()


def _cast(graph: fx.Graph) -> None:
    for node in graph.find_nodes(op="call_function", target=aten.rsub.Scalar):
        x, dtype = node.args[0], node.meta["val"].dtype
        if x.meta["val"].dtype == dtype:
            continue
        with graph.inserting_before(node):
            cast = graph.call_function(aten.to.dtype, (x, dtype))
        cast.meta = {**node.meta, "val": x.meta["val"].to(dtype)}
        node.replace_input_with(x, cast)


def _drop_assertions(graph: fx.Graph) -> None:
    assertions = [node for node in graph.nodes if node.target in _ASSERTIONS]
    used = ancestors(n for n in graph.nodes if not n.users and n.target not in _ASSERTIONS)
    for node in assertions:
        behind = ancestors([node])
        if not any(n.target in _READS and n in used for n in behind):
            graph.erase_node(node)
            for each in sorted(behind - used - {node}, reverse=True):
                if not each.users and each.op == "call_function":
                    graph.erase_node(each)


def translations() -> dict[Any, Callable[..., Any]]:
    """Ops that the converter does not know, for its `custom_translation_table`.

    `_int_mm` becomes `MatMulInteger` of unsigned rows: onnxruntime has fast kernels for unsigned by
    signed bytes, and is twenty times slower where both are signed.
    """
    import onnx
    from onnxscript import opset18 as op

    byte, int32 = onnx.TensorProto.UINT8, onnx.TensorProto.INT32

    def constant(kind: int) -> Any:
        return op.Constant(value=onnx.helper.make_tensor("offset", kind, [], [128]))

    def int_mm(self: Any, mat2: Any) -> Any:
        raised = op.Add(op.Cast(self, to=int32), constant(int32))
        return op.MatMulInteger(op.Cast(raised, to=byte), mat2, constant(byte))

    return {aten._int_mm.default: int_mm}
