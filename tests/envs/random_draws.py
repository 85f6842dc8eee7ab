"""What random models are drawn with: numbers, attributes and elements of MJCF."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np


class Draws:
    """Draws from a random generator, and counts the names that it gives to elements."""

    def __init__(self, random: np.random.Generator) -> None:
        self._random = random
        self._names: dict[str, list[str]] = {}

    def _maybe(self, share: float) -> bool:
        return self._random.random() < share

    def _pick(self, choices: Sequence[Any]) -> Any:
        return choices[self._random.integers(len(choices))]

    def _some(self, choices: Sequence[str], most: int) -> list[str]:
        """Some of the choices, each at most once."""
        number = min(len(choices), int(self._random.integers(1, most + 1)))
        return [choices[i] for i in self._random.permutation(len(choices))[:number]]

    def _between(self, low: float, high: float, n: int = 1) -> str:
        return " ".join(f"{x:.4g}" for x in self._random.uniform(low, high, n))

    def _positive(self, low: float, high: float) -> str:
        """A number between two, by its logarithm; sometimes 0, which switches off what it belongs to."""
        return "0" if self._maybe(0.2) else f"{np.exp(self._random.uniform(np.log(low), np.log(high))):.4g}"

    def _range(self, scale: float) -> str:
        """Two ends about 0; sometimes close together or on one side of it."""
        kind = self._random.random()
        low, high = -self._random.uniform(0.1, 1.0), self._random.uniform(0.1, 1.0)
        if kind < 0.1:
            low, high = -0.01, 0.01
        elif kind < 0.2:
            low = 0.5 * high
        return f"{scale * low:.4g} {scale * high:.4g}"

    def _set(self, element: ET.Element, share: float, **attributes: Any) -> None:
        """Give an element each of the attributes with a probability; a callable draws the value."""
        for name, value in attributes.items():
            if self._maybe(share):
                element.set(name, value() if callable(value) else value)

    def _add(self, parent: ET.Element, tag: str, prefix: str = "", **attributes: str) -> ET.Element:
        """A new element; with a prefix, it has a name that begins so."""
        element = ET.SubElement(parent, tag, attributes)
        if prefix:
            names = self._names.setdefault(prefix, [])
            names.append(f"{prefix}{len(names)}")
            element.set("name", names[-1])
        return element

    def _named(self, prefix: str) -> list[str]:
        return self._names.get(prefix, [])

    def _solref(self) -> str:
        kind = self._random.random()
        if kind < 0.25:
            return f"{self._between(-3000, -50)} {self._between(-60, -1)}"
        if kind < 0.35:
            return self._pick(("0 0", "-100 0", ".02 0", "0 -10", "-100 1"))
        return f"{self._between(0.003, 0.1)} {self._between(0.3, 1.5)}"

    def _solimp(self) -> str:
        if self._maybe(0.15):
            return self._pick(
                (".9 .9 .01", "0 1 .01", ".5 .99 0", ".9 .95 .001 0 2", ".9 .95 .01 1 3", ".99 .5 .01 .5 1")
            )
        return f"{self._between(0.1, 0.95)} {self._between(0.5, 0.99)} {self._between(0.001, 0.3)} " + (
            f"{self._between(0.2, 0.8)} {self._pick((1, 2, self._between(1, 4)))}"
        )
