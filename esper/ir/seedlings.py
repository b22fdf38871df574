"""Where seeds stand in a graph: their nodes, and the modules of the host that go on around them.

A seed's nodes have module paths of their own (`seeds.<slot>.<n>`), yet it stands in the middle of
the host: a module that computes the value at the slot, and reads it too, is still one region with
the seed inside it. Without that, planting would retire the IDs of the modules around the slot.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import fx

from esper.ir.ecology import PLANTED

if TYPE_CHECKING:
    from esper.ir.model import Model

ROOT = "seeds"  # module path of all seeds


class Seedlings:
    """The seeds of a model's present graph.

    Attributes:
        roots: module paths of living seeds.
        young: of those, the ones that are not committed.
        hosts: name of the node that gives a seed's blended value -> name of the host's value.
    """

    def __init__(self, model: Model) -> None:
        nodes = model.nodes
        planted = {
            name: life
            for name, life in model.ecology.slots().items()
            if life.seed and life.stage in PLANTED and life.output in nodes and life.input in nodes
        }
        living = list(planted.values())
        self.roots = {life.seed for life in living}
        self.young = {life.seed for life in living if life.stage != "committed"}
        self.hosts = {life.output: life.input for life in living if life.output != life.input}
        self._own: dict[str, list[fx.Node]] = {}
        if self.roots:
            for node in nodes.values():
                root = self.owner(node)
                if root:
                    self._own.setdefault(root, []).append(node)
        self._entries = {
            life.seed: nodes[life.input] for life in living if self._outermost(life.seed)
        }
        # A seed that took a phage's place stands in the modules in which the phage stood.
        self._around: dict[str, list[str]] = {
            life.seed: _prefixes(name.removeprefix("slot:").removesuffix(".out").rpartition(".")[0])
            for name, life in planted.items()
            if life.output == life.input
        }

    def _outermost(self, root: str) -> bool:
        return not any(root.startswith(f"{other}.") for other in self.roots)

    def owner(self, node: fx.Node) -> str:
        """Path of the outermost seed that a node belongs to; empty for a node of the host."""
        path = str(node.meta.get("module") or "")
        if not self.roots or not path.startswith(ROOT):
            return ""
        holding = [r for r in self.roots if path == r or path.startswith(f"{r}.")]
        return min(holding, key=len, default="")

    def exit(self, name: str) -> str:
        """The host's value behind a blended value, however many seeds stand in a row."""
        while name in self.hosts:
            name = self.hosts[name]
        return name

    def modules(self, node: fx.Node) -> list[str]:
        """Paths of all modules that a node is part of, outer before inner."""
        root = self.owner(node)
        if not root:
            return _prefixes(str(node.meta.get("module") or ""))
        depth = root.count(".")
        return [*self.around(root), *_prefixes(str(node.meta["module"]))[depth:]]

    def around(self, root: str) -> list[str]:
        """Modules of the host in which a seed stands.

        They compute the value at the slot, and read it too, or compute another value that the
        seed reads, as one does that takes a phage's place.
        """
        if root not in self._around:
            self._around[root] = []  # seeds in a ring cannot be, but nothing may loop
            host = self._entries.get(root)
            inside = self._readers(root, set()) | self._sources(root, host)
            self._around[root] = [
                path
                for path in ([] if host is None else self._host_modules(host))
                if any(other == path or other.startswith(f"{path}.") for other in inside)
            ]
        return self._around[root]

    def _sources(self, root: str, host: fx.Node | None) -> set[str]:
        """Module paths of the values that the seed reads besides that of its slot."""
        own = self._own.get(root, [])
        read = {source for node in own for source in node.all_input_nodes} - {*own, host}
        return {path for node in read if node.op != "get_attr" for path in self._host_modules(node)}

    def _host_modules(self, node: fx.Node) -> list[str]:
        root = self.owner(node)
        return self.around(root) if root else _prefixes(str(node.meta.get("module") or ""))

    def _readers(self, root: str, seen: set[str]) -> set[str]:
        """Module paths of host nodes that read the seed's value, through other seeds too."""
        seen.add(root)
        found: set[str] = set()
        for node in self._own.get(root, ()):
            for user in node.users:
                other = self.owner(user)
                if not other:
                    found.add(str(user.meta.get("module") or ""))
                elif other not in seen:
                    found |= self._readers(other, seen)
        return found


def _prefixes(path: str) -> list[str]:
    pieces = path.split(".")
    return [".".join(pieces[:depth]) for depth in range(1, len(pieces) + 1)] if path else []
