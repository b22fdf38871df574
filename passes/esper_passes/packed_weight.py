"""Weights on their way into a kernel, and back: what happens to tensors and to their reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import fx

from esper.ir.codec import decode_target
from esper.ir.origin import Origin
from esper.plan import Erase, Insert, Ref, SetLife
from esper.state import Create, Drop, Forget, Op, Rearrange, Replace, Train
from esper_passes import packing
from esper_passes.editing import Inserter
from esper_passes.liveness import fresh
from esper_passes.lowerable import turned

if TYPE_CHECKING:
    from esper.ir.model import Model
    from esper_passes.kept import Kept
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
        freeze: whether weights stop to train.

    Attributes:
        state: what happens to tensors.
        lives: masks that go.
        inserts, gone: edits to make before and after the node calls its kernel.
    """

    def __init__(self, model: Model, node: fx.Node, freeze: bool = False) -> None:
        self._model, self._names, self._freeze = model, model.canonical_names(), freeze
        self._insert = Inserter(model, node)
        self.state: dict[str, tuple[Op, ...]] = {}
        self.lives: list[SetLife] = []
        self.gone: list[Erase] = []
        self._counts: dict[str, int] = {}
        self._frozen: set[str] = set()

    @property
    def note(self) -> str:
        """What a summary adds where something is frozen."""
        return " on frozen weights" if self._frozen else ""

    def remembered(self, calls: tuple[Origin, ...]) -> tuple[Origin, ...]:
        """Calls that the kernel takes over, which know what of them was frozen."""
        return tuple(call._replace(froze=call.name in self._frozen) for call in calls)

    @property
    def inserts(self) -> list[Insert]:
        """Reads of new tensors."""
        return self._insert.edits

    def add(self, layer: Lowerable, kept: Kept | None) -> Reads:
        """Pack the weight of a layer: what is kept of it, or all where that is None."""
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
        self.gone += [Erase(call.name) for call in reversed(layer.rounding)]
        if layer.scale is not None:
            scale = Ref(layer.scale.name)
        if layer.scale is not None and not layer.rounding:
            self.state[self._names[str(layer.scale.target)]] = (_vector(self._model, layer.scale),)
        if kept is not None:
            move = kept.move(shape, layer.columns)
            moves.append(move)
            self._count(layer, move.source.numel(), kept.index.numel())
            name = f"{layer.weight}_{kept.suffix}"
            index = kept.index.to(layer.read.meta["val"].device, torch.int32)
            self.state[name] = (Create(index, trainable=False),)
            place = self._insert.read(name, f"{layer.node.name}_{kept.suffix}")
        elif layer.columns:
            moves.append(packing.turn(shape))
        if self._freeze and trains(self._model, layer.weight):
            moves.append(Train(False))
            self._frozen.add(layer.node.name)
        if moves:
            self.state[layer.weight] = tuple(moves)
        return Reads(Ref(layer.read.name), scale, place)

    def _count(self, layer: Lowerable, kept: int, index: int) -> None:
        outputs, inputs = layer.size
        size = layer.read.meta["val"].element_size()
        for name, count in (
            ("entries", outputs * inputs),
            ("kept", kept),
            ("bytes_before", outputs * inputs * size),
            ("bytes_after", kept * size + index * 4),
        ):
            self._counts[name] = self._counts.get(name, 0) + count

    @property
    def figures(self) -> dict[str, Any]:
        """What packing saves: density, and bytes of weights and indices before and after."""
        found: dict[str, Any] = dict(self._counts)
        if found:
            found["density"] = found.pop("kept") / found.pop("entries")
        return found


def trains(model: Model, name: str) -> bool:
    """Whether the weight of that name trains."""
    weight = model.tensor(name)
    return weight is not None and weight.requires_grad


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
        self,
        values: fx.Node,
        scale: fx.Node | None,
        index: fx.Node | None,
        kept: Kept | None,
        size: tuple[int, int],
        layer: Origin,
        between: Origin,
    ) -> Ref:
        """Unpack one weight; gives what a linear layer reads.

        Args:
            values, scale, index: nodes that read those, where the kernel does.
            kept: what of the weight is in `values`; None for all.
            size: outputs and inputs.
            layer: the call that will read the weight, which says how it is stored.
            between: the call that makes the weight of integers and scales.
        """
        columns = turned(layer)
        shape = size[::-1] if columns else size
        weight = self.weight(values, index, kept, shape, columns, layer.froze)
        if scale is None:
            return weight
        self.state[self._names[str(scale.target)]] = (self._column(scale, columns),)
        return self.call(between, (weight, Ref(scale.name)))

    def weight(
        self,
        values: fx.Node,
        index: fx.Node | None,
        kept: Kept | None,
        shape: tuple[int, int],
        columns: bool,
        froze: bool,
    ) -> Ref:
        """Unpack the values alone, to `shape`, which is (inputs, outputs) where `columns`."""
        move = packing.turn(shape) if columns else None
        if kept is not None:
            move = kept.move(shape, columns)
        if index is not None:
            self.state[self._names[str(index.target)]] = (Drop(),)
            self.gone.append(Erase(index.name))
        moves: list[Op] = [] if move is None else [move.inverse(shape)]
        if froze:
            moves.append(Train(True))
        if moves:
            self.state[self._names[str(values.target)]] = tuple(moves)
        return Ref(values.name)

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

    def _column(self, scale: fx.Node, columns: bool) -> Rearrange | Replace:
        """Scales as a layer has them: in a row or column, and in the dtype of what it reads."""
        value = self._model.tensor(str(scale.target))
        assert value is not None
        shape = (1, len(value)) if columns else (len(value), 1)
        move = packing.flatten(shape).inverse(shape)
        x: Any = self._node.args[0]
        dtype = x.meta["val"].dtype
        return move if value.dtype == dtype else Replace(move(value.detach()).to(dtype))
