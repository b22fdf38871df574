"""Weights on their way into a kernel, and back: what happens to tensors and to their reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, fx

from esper.ir.codec import decode_target
from esper.ir.origin import Origin
from esper.plan import Erase, Insert, Ref, SetLife
from esper.state import Create, Drop, Forget, Op, Rearrange, Replace
from esper_passes import packing
from esper_passes.editing import Inserter
from esper_passes.liveness import fresh

if TYPE_CHECKING:
    from esper.ir.model import Model
    from esper_passes.lowerable import Lowerable


class Reads(NamedTuple):
    """What a kernel reads of one weight."""

    values: Ref
    scale: Ref | None
    place: Ref | None  # of the index


class Packer:
    """Packs weights for one node.

    Args:
        model: never changed.
        node: that will read them.

    Attributes:
        state: what happens to tensors.
        lives: masks that go.
        inserts, gone: edits to make before and after the node calls its kernel.
    """

    def __init__(self, model: Model, node: fx.Node) -> None:
        self._model, self._names = model, model.canonical_names()
        self._insert = Inserter(model, node)
        self.state: dict[str, tuple[Op, ...]] = {}
        self.lives: list[SetLife] = []
        self.gone: list[Erase] = []

    @property
    def inserts(self) -> list[Insert]:
        """Reads of new tensors."""
        return self._insert.edits

    def add(self, layer: Lowerable, index: Tensor | None, rows: int, run: int) -> Reads:
        """Pack the weight of a layer: its runs in `index`, or all of it where that is None."""
        shape = tuple(layer.read.meta["val"].shape)
        moves: list[Op] = []
        scale = place = None
        if layer.between is not None:
            self.gone.append(Erase(layer.between.name))
        if layer.mask is not None:
            mask = self._names[str(layer.mask.target)]
            value = self._model.tensor(mask)
            assert value is not None
            moves.append(Forget(~value, values=True))
            self.state[mask] = (Drop(),)
            self.gone.append(Erase(layer.mask.name))
            self.lives.append(SetLife(f"mask:{layer.weight}", None))
        if layer.scale is not None:
            scale = Ref(layer.scale.name)
            self.state[self._names[str(layer.scale.target)]] = (_vector(self._model, layer.scale),)
        if index is not None:
            moves.append(packing.pack_runs(index, shape, rows, run, layer.columns))
            name = fresh({*self._names, *self.state}, f"{layer.weight}_index")
            device = layer.read.meta["val"].device
            self.state[name] = (Create(index.to(device, torch.int32), trainable=False),)
            place = self._insert.read(name, f"{layer.node.name}_index")
        elif layer.columns:
            moves.append(packing.turn(shape))
        if moves:
            self.state[layer.weight] = tuple(moves)
        return Reads(Ref(layer.read.name), scale, place)


def _vector(model: Model, scale: fx.Node) -> Rearrange | Replace:
    """Scales as kernels read them: one for each output, in float32, which holds all 16-bit ones."""
    value = model.tensor(str(scale.target))
    assert value is not None
    move = packing.flatten(tuple(value.shape))
    return move if value.dtype == torch.float32 else Replace(move(value.detach()).float())


class Unpacker:
    """Takes weights out of a kernel that a node calls.

    Args:
        model: never changed.
        node: that calls it.

    Attributes:
        state: what happens to tensors.
        inserts, gone: edits to make before and after the node calls another op.
    """

    def __init__(self, model: Model, node: fx.Node) -> None:
        self._model, self._node, self._names = model, node, model.canonical_names()
        self._taken = set(model.nodes)
        self.state: dict[str, tuple[Op, ...]] = {}
        self.inserts: list[Insert] = []
        self.gone: list[Erase] = []

    def add(
        self, reads: tuple[Any, Any, Any], runs: tuple[int, int], turned: bool, between: Origin
    ) -> Ref:
        """Unpack one weight; gives what a linear layer reads.

        Args:
            reads: nodes of values, scales and index; None where the kernel reads none.
            runs: rows and run of the index.
            turned: whether the weight was stored as (inputs, outputs).
            between: the call that makes the weight of integers and scales.
        """
        values, scale, index = reads
        outputs, inputs = (int(size) for size in values.meta["val"].shape)
        if index is not None:
            x: Any = self._node.args[0]
            inputs = int(x.meta["val"].shape[-1])
        shape = (inputs, outputs) if turned else (outputs, inputs)
        weight = Ref(values.name)
        move = packing.turn(shape) if turned else None
        if index is not None:
            stored = self._model.tensor(str(index.target))
            assert stored is not None
            move = packing.pack_runs(stored, shape, *runs, turned)
            self.state[self._names[str(index.target)]] = (Drop(),)
            self.gone.append(Erase(index.name))
        if move is not None:
            self.state[self._names[str(values.target)]] = (move.inverse(shape),)
        if scale is None:
            return weight
        self.state[self._names[str(scale.target)]] = (self._column(scale, turned),)
        return self.call(between, (weight, Ref(scale.name)))

    def call(self, origin: Origin, args: tuple[Any, ...], **kwargs: Any) -> Ref:
        """A call that there was, again, under its name if that is free."""
        name = fresh(self._taken, origin.name)
        self._taken.add(name)
        module = origin.module or str(self._node.meta.get("module") or "")
        self.inserts.append(
            Insert(
                name, "call_function", decode_target(origin.op), args, self._node.name,
                kwargs=kwargs, module=module, source=origin.source,
            )
        )  # fmt: skip
        return Ref(name)

    def _column(self, scale: fx.Node, turned: bool) -> Rearrange | Replace:
        """Scales as a layer has them: in a row or column, and in the dtype of what it reads."""
        value = self._model.tensor(str(scale.target))
        assert value is not None
        shape = (1, len(value)) if turned else (len(value), 1)
        move = packing.flatten(shape).inverse(shape)
        x: Any = self._node.args[0]
        dtype = x.meta["val"].dtype
        return move if value.dtype == dtype else Replace(move(value.detach()).to(dtype))
