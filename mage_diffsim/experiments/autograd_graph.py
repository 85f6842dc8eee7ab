"""Reads the computation graph of the TD error from autograd's graph of one update, and draws it (Fig. 9)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mage_diffsim.agent import Agent
from mage_diffsim.buffer import Batch
from mage_diffsim.draws import Draws
from mage_diffsim.dynamics import Imagined
from mage_diffsim.experiments.figures import write_figure
from mage_diffsim.shapes import Tensor
from mage_diffsim.training import Trainer


@dataclass(frozen=True)
class Quantity:
    """A node: what an update computes on the way to delta."""

    name: str
    parents: tuple[str, ...]
    """The quantities that autograd reaches from it first, going back."""
    stochastic: bool
    """Whether it is drawn: fresh random numbers change it though its parents stay; s is drawn from the buffer."""
    operations: int
    """Operations of autograd between it and its parents."""


def computation_graph(trainer: Trainer) -> list[Quantity]:
    """The quantities of one critic update of a trained agent that imagines, in the order of computation.

    Args:
        trainer: past its warm-up, so that there is a batch; it is left as it was.
    """
    agent = trainer.agent
    draws, other = trainer.draw(2)
    batch = trainer.buffer.gather(draws.index)
    found = update_tensors(agent, batch, draws)
    redrawn = {
        kind: update_tensors(agent, batch, draws._replace(**{kind: getattr(other, kind)}))
        for kind in ("imagine", "target")
    }
    quantities = []
    for name, tensor in found.items():
        parents, operations = _behind(tensor, {k: x for k, x in found.items() if k != name})
        stochastic = any(
            not torch.equal(again[name], tensor) and all(torch.equal(again[p], found[p]) for p in parents)
            for again in redrawn.values()
        )
        quantities.append(Quantity(name, parents, stochastic or name == "s", operations))
    return quantities


def update_tensors(agent: Agent, batch: Batch, draws: Draws) -> dict[str, Tensor]:
    """The quantities of one update with their autograd graph, computed by the agent's own functions."""
    found: dict[str, Tensor] = {}

    def heard(function: Callable[..., Any], listen: Callable[..., None]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            output = function(*args)
            listen(output, *args)
            return output

        return call

    start = agent.start(batch)
    leaf = found["s"] = start.x.detach().clone().requires_grad_()
    at = start.at(leaf)
    action = found["a"] = agent.policy(at.obs)

    imagined: Imagined = agent.dynamics.step(at, action, draws.imagine)
    found["s'"] = imagined.obs
    found["r"] = agent.reward(at.obs, action, imagined.obs)
    policy, q = agent._policy, agent._q  # what target_value calls
    try:
        agent._policy = heard(policy, lambda output, *_: found.update({"π̄(s')": output}))  # type: ignore[method-assign]
        agent._q = heard(q, lambda output, x, act, *_: found.update({"a'": act, "Q̄(s', a')": output}))  # type: ignore[method-assign]
        bootstrap = agent.target_value(imagined.obs, draws.target)
    finally:
        del agent._policy, agent._q
    found["y"] = found["r"] + agent.hyper.gamma * torch.where(agent.task.terminated(imagined.obs), 0.0, bootstrap)
    found["Q(s, a)"] = agent.q(at.obs.unsqueeze(1), action.unsqueeze(1))
    found["δ"] = found["y"].unsqueeze(1) - found["Q(s, a)"]
    return found


def _behind(tensor: Tensor, others: dict[str, Tensor]) -> tuple[tuple[str, ...], int]:
    """The first of the others on every path back from a tensor, and how many operations lie before them."""
    stops = {x.grad_fn: name for name, x in others.items() if x.grad_fn is not None}
    leaves = {id(x): name for name, x in others.items() if x.grad_fn is None}
    reached: set[str] = set()
    seen: set[Any] = set()
    stack = [tensor.grad_fn] if tensor.grad_fn is not None else []
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        for parent, _ in node.next_functions:
            if parent is None:
                continue
            variable = getattr(parent, "variable", None)
            if parent in stops:
                reached.add(stops[parent])
            elif variable is not None:
                if id(variable) in leaves:
                    reached.add(leaves[id(variable)])
            else:
                stack.append(parent)
    return tuple(name for name in others if name in reached), len(seen)


PLACES = {
    "s": (0, 1), "a": (1, 0), "s'": (2, 1), "r": (3, 2), "π̄(s')": (3, 0), "a'": (4, 0), "Q̄(s', a')": (5, 1),
    "y": (6, 2), "Q(s, a)": (6, 0), "δ": (7, 1),
}  # fmt: skip
"""Where the quantities are drawn: column, row."""


def draw_computation_graph(path: Path, graph: list[Quantity], title: str) -> None:
    """Draw a graph into a PNG file: circles are drawn at random, boxes are computed.

    Raises:
        InputError: the file cannot be written.
    """

    def paint(page: Any) -> None:
        page.suptitle(title)
        axis = page.subplots()
        for quantity in graph:
            place = PLACES[quantity.name]
            shape = "circle,pad=0.55" if quantity.stochastic else "square,pad=0.45"
            for parent in quantity.parents:
                axis.annotate(
                    "", xy=place, xytext=PLACES[parent],
                    arrowprops=dict(arrowstyle="-|>", shrinkA=26, shrinkB=26, color="#555555",
                                    connectionstyle=f"arc3,rad={_bend(parent, quantity.name)}"),
                )  # fmt: skip
            colour = "#E69F00" if quantity.stochastic else "#56B4E9"
            axis.text(*place, quantity.name, ha="center", va="center", fontsize=12,
                      bbox=dict(boxstyle=shape, facecolor=colour, alpha=0.55, edgecolor="black"))  # fmt: skip
            operations = f"{quantity.operations} operations" if quantity.operations else "given"
            axis.text(place[0], place[1] - 0.42, operations, ha="center", va="top", fontsize=7, color="#555555")
        axis.text(0, 2.3, "circle: drawn at random     box: computed", fontsize=9)
        axis.set_xlim(-0.6, 7.6)
        axis.set_ylim(-0.7, 2.5)
        axis.axis("off")

    write_figure(path, 11.0, 4.2, paint)


def _bend(parent: str, child: str) -> float:
    """Curvature of an arrow: one that would run through another node is bent around it."""
    (x1, y1), (x2, y2) = PLACES[parent], PLACES[child]
    inside = (
        other for other, (x, y) in PLACES.items()
        if other not in (parent, child) and min(x1, x2) < x < max(x1, x2)
        and abs((y2 - y1) * (x - x1) - (y - y1) * (x2 - x1)) < 0.3 * abs(x2 - x1)
    )  # fmt: skip
    return 0.25 if any(inside) else 0.0
