"""A traced step as text and back, so that a graph of PyTorch's can carry it: compiled, exported, read elsewhere."""

from __future__ import annotations

import json
from typing import Any

from throughtime.engine.cpu.graph import Graph, Node, walk
from throughtime.engine.cpu.trace import Step

FORM = 1  # of the text


def to_text(step: Step) -> str:
    """A step's graph: its nodes in the order in which they were made, and which of them are y and the new state."""
    nodes = sorted(walk([step.y, *step.state, *_inputs(step)]), key=lambda node: node.order)
    place = {node: k for k, node in enumerate(nodes)}
    content = {
        "form": FORM,
        "nodes": [[n.op, [place[a] for a in n.arguments], n.width, n.detail] for n in nodes],
        "fields": step.fields,
        "y": place[step.y],
        "state": [place[node] for node in step.state],
        "noise": step.noise,
        "vectors": step.vectors,
    }
    return json.dumps(content, separators=(",", ":"))


def from_text(text: str) -> Step:
    """The step that a text tells of; what makes its rows and matrices from parameters is not part of it.

    Raises:
        ValueError: the text is of another form.
    """
    content = json.loads(text)
    if content.get("form") != FORM:
        raise ValueError(f"a step in form {content.get('form')}, where this version of throughtime reads {FORM}")
    graph = Graph()
    nodes: list[Node] = []
    for op, arguments, width, detail in content["nodes"]:
        nodes.append(graph.node(op, [nodes[k] for k in arguments], width, _frozen(detail)))
    return Step(
        graph,
        nodes[content["y"]],
        tuple(nodes[k] for k in content["state"]),
        tuple(content["fields"]),
        content["noise"],
        None,
        content["vectors"],
    )


def _inputs(step: Step) -> list[Node]:
    """Those that the step is given, read or not."""
    nodes = step.graph.nodes.values()
    return [node for node in nodes if node.op == "input" and not node.detail.startswith("d.")]


def _frozen(detail: Any) -> Any:
    return tuple(detail) if isinstance(detail, list) else detail
