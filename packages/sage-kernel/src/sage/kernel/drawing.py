"""Plans as pictures."""

from __future__ import annotations

from collections.abc import Iterator

from sage.kernel.plan import Gate, Iterate, Node, Plan, label

__all__ = ["mermaid"]

_START, _END = ("([", "])"), ("[(", ")]")
_SHAPES = {"source": _START, "requests": _START, "sink": _END, "reply": _END, "gate": ("{{", "}}")}
_INDENT = "  "


def mermaid(plan: Plan) -> str:
    """A Mermaid flowchart; the body of a loop is a subgraph, with a dotted arrow for the way round."""
    return "\n".join(["flowchart LR", *_graph(plan, [_text(node) for node in plan.nodes], "n", _INDENT)])


def _graph(plan: Plan, texts: list[str], prefix: str, indent: str) -> Iterator[str]:
    for i, node in enumerate(plan.nodes):
        if isinstance(node.fn, Iterate):
            yield f'{indent}subgraph {prefix}{i}["{texts[i]}"]'
            yield from _body(node.fn, f"{prefix}{i}_", indent + _INDENT)
            yield f"{indent}end"
        else:
            left, right = _SHAPES.get(node.verb, ("[", "]"))
            yield f'{indent}{prefix}{i}{left}"{texts[i]}"{right}'
    for i, node in enumerate(plan.nodes):
        for port in node.inputs:
            arrow = "-->" if port.output == "out" else "-. diverted .->"
            yield f"{indent}{prefix}{port.node} {arrow} {prefix}{i}"


def _body(spec: Iterate, prefix: str, indent: str) -> Iterator[str]:
    first, *steps, _ = spec.body.nodes
    texts = [first.name, *map(_text, steps), f"until {label(spec.until)}".rstrip()]
    yield from _graph(spec.body, texts, prefix, indent)
    yield f"{indent}{prefix}{len(texts) - 1} -. at most {spec.max_rounds} rounds .-> {prefix}0"


def _text(node: Node) -> str:
    text = node.name if node.name.startswith(node.verb) else f"{node.verb} {node.name}"
    if isinstance(node.fn, Gate):
        text += f"<br/>{node.fn.on_timeout} after {node.fn.timeout:g} s"
    if node.call.cache is not None:
        text += f"<br/>cache {node.call.cache.ttl:g} s" if node.call.cache.ttl else "<br/>cache"
    return text.replace('"', "'")
