"""ComfyUI's graph as it ran: nodes by id, and how to walk from one to what it was made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from safelight.errors import RequestError
from safelight.tasks.metadata.bounded import mapping, sequence, text

MAX_NODES = 20_000
_HOPS = 64
"""A value may be passed on by so many nodes."""
_VALUES = ("value", "text", "string", "seed", "int", "float", "number", "prompt", "text_0", "text1")
"""What nodes that only hold a value call it."""


@dataclass(frozen=True)
class Link:
    """An input that is the output of another node."""

    node: str
    output: int


@dataclass(frozen=True)
class Node:
    """What ran, on what."""

    id: str
    kind: str
    """`class_type`."""
    inputs: Mapping[str, JsonValue]

    def link(self, name: str) -> Link | None:
        """Where an input comes from; None if it is a plain value, or not there."""
        return as_link(self.inputs.get(name))


def as_link(value: JsonValue) -> Link | None:
    """`["4", 0]` is a link."""
    pair = sequence(value)
    if len(pair) != 2 or not isinstance(pair[0], str | int) or not isinstance(pair[1], int):
        return None
    return Link(str(pair[0]), pair[1])


class Graph:
    """All nodes, in the order in which they stand."""

    def __init__(self, data: JsonValue) -> None:
        """Raises RequestError: it is no graph, or one of too many nodes."""
        nodes = mapping(mapping(data).get("prompt", data))  # some wrap it
        if len(nodes) > MAX_NODES:
            raise RequestError(f"the graph of ComfyUI has more than {MAX_NODES} nodes: it was made to harm")
        self.nodes: dict[str, Node] = {}
        for id_, value in nodes.items():
            kind = text(mapping(value).get("class_type"))
            if kind is not None:
                self.nodes[id_] = Node(id_, kind, mapping(mapping(value).get("inputs")))
        if not self.nodes:
            raise RequestError("the graph of ComfyUI has no nodes: it is damaged")

    def node(self, link: Link | None) -> Node | None:
        """Where a link goes."""
        return None if link is None else self.nodes.get(link.node)

    def value(self, node: Node, *names: str) -> JsonValue:
        """The first of the inputs that there is, followed through nodes that only hold a value."""
        found = next((node.inputs[name] for name in names if name in node.inputs), None)
        for _ in range(_HOPS):
            at = self.node(as_link(found))
            if at is None:
                return None if as_link(found) is not None else found
            found = next((at.inputs[name] for name in (*names, *_VALUES) if name in at.inputs), None)
        return None

    def back(self, start: Node, names: Sequence[str]) -> Iterator[Node]:
        """From a node to what made it, along the first of the inputs that is a link, without the node itself."""
        seen, at = {start.id}, self._before(start, names)
        while at is not None and at.id not in seen:
            yield at
            seen.add(at.id)
            at = self._before(at, names)

    def _before(self, node: Node, names: Sequence[str]) -> Node | None:
        return next((found for name in names if (found := self.node(node.link(name))) is not None), None)

    def above(self, start: Node) -> set[str]:
        """The ids of all nodes that a node depends on, itself among them."""
        seen, waiting = {start.id}, [start]
        while waiting:
            for value in waiting.pop().inputs.values():
                node = self.node(as_link(value))
                if node is not None and node.id not in seen:
                    seen.add(node.id)
                    waiting.append(node)
        return seen
