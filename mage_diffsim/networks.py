"""Batched multilayer perceptrons: R runs x K networks in one flat parameter tensor ``[R, K, P]``.

Networks are pure functions ``mlp(parameters, x)``. A flat tensor makes optimiser, clipping, Polyak averaging and
per-run resets single elementwise operations, and one batched matrix product serves every run and copy at once.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F

from mage_diffsim.shapes import Float, Tensor


class MLP:
    """Swish multilayer perceptron with ``sizes`` = (input, *hidden, output) units, linear at the end.

    Args:
        sizes: units of every layer.
        last: distribution of the last layer's initial weights, Xavier ``uniform`` or ``normal``. The published code
            takes uniform for actor and critics, normal for the ensemble and the reward model.
    """

    def __init__(self, sizes: Sequence[int], last: Literal["uniform", "normal"] = "uniform") -> None:
        self.sizes, self.last = tuple(sizes), last
        self.shapes = [(i, o) for i, o in itertools.pairwise(self.sizes)]
        self.lengths = [n for i, o in self.shapes for n in (i * o, o)]
        self.n_parameters = sum(self.lengths)

    def initial(self, copies: int, generator: torch.Generator, dtype: torch.dtype) -> Float[Tensor, "K P"]:
        """Fresh parameters of ``copies`` networks: Xavier uniform (the last layer as ``last`` says), zero biases."""
        pieces = []
        for layer, (i, o) in enumerate(self.shapes):
            if layer == len(self.shapes) - 1 and self.last == "normal":
                std = math.sqrt(2.0 / (i + o))
                weight = std * torch.randn(copies, i * o, dtype=dtype, device=generator.device, generator=generator)
            else:
                bound = math.sqrt(6.0 / (i + o))
                draw = torch.rand(copies, i * o, dtype=dtype, device=generator.device, generator=generator)
                weight = bound * (2.0 * draw - 1.0)
            pieces += [weight, torch.zeros(copies, o, dtype=dtype, device=generator.device)]
        return torch.cat(pieces, dim=-1)

    def layers(self, parameters: Float[Tensor, "R K P"]) -> list[tuple[Tensor, Tensor]]:
        """Weights ``[R*K, in, out]`` and biases ``[R*K, 1, out]`` as views of the flat parameters."""
        runs_copies = parameters.shape[0] * parameters.shape[1]
        pieces = parameters.reshape(runs_copies, -1).split(self.lengths, dim=-1)
        return [
            (pieces[2 * n].view(runs_copies, i, o), pieces[2 * n + 1].view(runs_copies, 1, o))
            for n, (i, o) in enumerate(self.shapes)
        ]

    def __call__(self, parameters: Float[Tensor, "R K P"], x: Float[Tensor, "R k B i"]) -> Float[Tensor, "R K B o"]:
        """Every copy applied to its rows; ``k`` is K, or 1 where all copies see the same rows."""
        runs, copies, _ = parameters.shape
        h = x.expand(runs, copies, *x.shape[2:]).reshape(runs * copies, *x.shape[2:])
        layers = self.layers(parameters)
        for weight, bias in layers[:-1]:
            h = F.silu(torch.baddbmm(bias, h, weight))
        return _output_layer(h, *layers[-1]).view(runs, copies, x.shape[2], self.sizes[-1])


def _output_layer(h: Float[Tensor, "G B h"], weight: Float[Tensor, "G h o"], bias: Float[Tensor, "G 1 o"]) -> Tensor:
    """h weight + bias. With one output a product and a sum, as matrix products of width 1 are several times slower."""
    if weight.shape[-1] > 1:
        return torch.baddbmm(bias, h, weight)
    return (h * weight.transpose(1, 2)).sum(dim=-1, keepdim=True) + bias


class ScalarPullback:
    """Parameter gradients of f(Q(x), dQ/dx) for stacks of scalar swish networks, from the cotangents of both.

    With c = df/dQ and u = df/d(dQ/dx) held fixed, df/dparameters is the gradient of sum(c * Q + u . dQ/dx), and
    u . dQ/dx is the derivative of Q along u. So calling the object pushes the tangent u forward through the network and
    then sweeps back once; the adjoints of the tangent are those of the first backward sweep. This is the second-order
    part of MAGE without autograd's double backward, which would rerun both passes through generic derivative formulas.
    Neither parameters nor x may require a gradient. The sweep for dQ/dx is made only when ``input_gradient`` is called.

    Notation per hidden layer: z pre-activation, s = sigmoid(z), h = silu(z) = z s; ``first`` = s + h (1 - s) and
    ``second`` = first + s - 2 s first are silu's derivatives at z; ``adjoint`` is dQ/dh; a dot is the tangent.
    """

    def __init__(self, network: MLP, parameters: Float[Tensor, "R K P"], x: Float[Tensor, "R k B i"]) -> None:
        self.shape = parameters.shape
        runs, copies, _ = parameters.shape
        h = x.expand(runs, copies, *x.shape[2:]).reshape(runs * copies, *x.shape[2:])
        *hidden, (weight_out, bias_out) = network.layers(parameters)
        self.hidden, self.weight_out = hidden, weight_out
        self.h, self.sigmoid, self.first = [h], [], []
        for weight, bias in hidden:
            z = torch.baddbmm(bias, h, weight)
            sigmoid = z.sigmoid()
            h = z.mul_(sigmoid)
            self.sigmoid.append(sigmoid)
            self.first.append((h + sigmoid).addcmul_(h, sigmoid, value=-1.0))
            self.h.append(h)
        self.value = _output_layer(h, weight_out, bias_out).view(runs, copies, -1)
        """Q(x), shape [R, K, B]."""

    def input_gradient(self) -> Float[Tensor, "R K B i"]:
        """dQ/dx, shape [R, K, B, in]. Call this before calling the object with ``u``."""
        adjoint = self.weight_out.transpose(1, 2).expand_as(self.h[-1])
        self.adjoint, self.adjoint_z = [], []
        for (weight, _), first in zip(reversed(self.hidden), reversed(self.first), strict=True):
            adjoint_z = adjoint * first
            self.adjoint.insert(0, adjoint)
            self.adjoint_z.insert(0, adjoint_z)
            adjoint = torch.bmm(adjoint_z, weight.transpose(1, 2))
        return adjoint.reshape(*self.shape[:2], *adjoint.shape[1:])

    def __call__(self, c: Float[Tensor, "R K B"], u: Float[Tensor, "R K B i"] | None = None) -> Float[Tensor, "R K P"]:
        """df/dparameters from c = df/dQ and, if f uses the input gradient, u = df/d(dQ/dx)."""
        c = c.flatten(0, 1).unsqueeze(-1)
        tangents, z_dots = ([], []) if u is None else self._push(u.flatten(0, 1))
        weight_gradient = torch.bmm(c.transpose(1, 2), self.h[-1]).squeeze(1)
        if u is not None:
            weight_gradient += tangents[-1].sum(dim=1)
        pieces = [c.sum(dim=1), weight_gradient]
        a = c * self.weight_out.transpose(1, 2)  # adjoint of h
        for n in reversed(range(len(self.hidden))):
            a_z = a * self.first[n]
            if u is not None:
                sigmoid, first = self.sigmoid[n], self.first[n]
                second = (first + sigmoid).addcmul_(sigmoid, first, value=-2.0)
                a_z.addcmul_(second.mul_(self.adjoint[n]), z_dots[n])
            weight_gradient = torch.bmm(self.h[n].transpose(1, 2), a_z)
            if u is not None:
                weight_gradient.baddbmm_(tangents[n].transpose(1, 2), self.adjoint_z[n])
            pieces += [a_z.sum(dim=1), weight_gradient.flatten(1)]
            if n:
                a = torch.bmm(a_z, self.hidden[n][0].transpose(1, 2))
        return torch.cat(pieces[::-1], dim=-1).view(self.shape)

    def _push(self, h_dot: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Tangents of every layer's input (the last is the output layer's) and of every pre-activation."""
        tangents, z_dots = [h_dot], []
        for (weight, _), first in zip(self.hidden, self.first, strict=True):
            z_dots.append(torch.bmm(tangents[-1], weight))
            tangents.append(z_dots[-1] * first)
        return tangents, z_dots
