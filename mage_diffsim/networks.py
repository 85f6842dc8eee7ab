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

from mage_diffsim.shapes import Bool, Float, Tensor

ALIGNMENT = 32
"""Every weight and bias begins at a multiple of it in the flat parameters: matrix products of a GPU need aligned
operands for their fast kernels. What lies between them is zero and stays so."""


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
        self.lengths: list[int] = []
        """Numbers in each stretch of the flat parameters: weight and bias of every layer, each with its padding."""
        self.pieces: list[int] = []
        """Which stretches are weights and biases."""
        for length in (n for i, o in self.shapes for n in (i * o, o)):
            self.pieces.append(len(self.lengths))
            self.lengths.append(length)
            if padding := -length % ALIGNMENT:
                self.lengths.append(padding)
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
        return self.join(pieces)

    def join(self, pieces: Sequence[Tensor]) -> Float[Tensor, "G P"]:
        """The flat tensor of weights ``[G, in * out]`` and biases ``[G, out]``, layer by layer, zero between them."""
        given = dict(zip(self.pieces, pieces, strict=True))
        rows = pieces[0].shape[0]
        stretches = [given[k] if k in given else pieces[0].new_zeros(rows, n) for k, n in enumerate(self.lengths)]
        return torch.cat(stretches, dim=-1)

    def layers(self, parameters: Float[Tensor, "R K P"]) -> list[tuple[Tensor, Tensor]]:
        """Weights ``[R*K, in, out]`` and biases ``[R*K, 1, out]`` as views of the flat parameters."""
        runs_copies = parameters.shape[0] * parameters.shape[1]
        stretches = parameters.reshape(runs_copies, -1).split(self.lengths, dim=-1)
        pieces = iter([stretches[k] for k in self.pieces])
        return [(next(pieces).view(runs_copies, i, o), next(pieces).view(runs_copies, 1, o)) for i, o in self.shapes]

    def __call__(self, parameters: Float[Tensor, "R K P"], x: Float[Tensor, "R k B i"]) -> Float[Tensor, "R K B o"]:
        """Every copy applied to its rows; ``k`` is K, or 1 where all copies see the same rows."""
        runs, copies, _ = parameters.shape
        h = x.expand(runs, copies, *x.shape[2:]).reshape(runs * copies, *x.shape[2:])
        *hidden, last = self.layers(parameters)
        for layer in hidden:
            h = F.silu(_linear(h, *layer))
        return _linear(h, *last).view(runs, copies, x.shape[2], self.sizes[-1])


def _linear(h: Float[Tensor, "G B i"], weight: Float[Tensor, "G i o"], bias: Float[Tensor, "G 1 o"]) -> Tensor:
    """h weight + bias. With one output a product and a sum, as matrix products of width 1 are several times slower."""
    if weight.shape[-1] == 1:
        return (h * weight.transpose(1, 2)).sum(dim=-1, keepdim=True) + bias
    if (
        torch.compiler.is_compiling()
    ):  # one kernel adds the bias and applies what follows, where baddbmm copies it first
        return torch.bmm(h, weight) + bias
    return torch.baddbmm(bias, h, weight)


class ScalarPullback:
    """Parameter gradients of f(Q(x), dQ/dx) for stacks of scalar swish networks, from the cotangents of both.

    With c = df/dQ and u = df/d(dQ/dx) held fixed, df/dparameters is the gradient of sum(c * Q + u . dQ/dx), and
    u . dQ/dx is the derivative of Q along u. So calling the object pushes the tangent u forward through the network and
    then sweeps back once; the adjoints of the tangent are those of the first backward sweep. This is the second-order
    part of MAGE without autograd's double backward, which would rerun both passes through generic derivative formulas.
    Neither parameters nor x may require a gradient. The sweep for dQ/dx is made only when ``input_gradient`` is called,
    which may leave the first components of x out of it.

    Notation per hidden layer: z pre-activation, s = sigmoid(z), h = silu(z) = z s; ``first`` = h + s (1 - h) is silu's
    derivative at z; ``adjoint`` is dQ/dh and ``adjoint_z`` = adjoint first is dQ/dz; a dot is the tangent. The second
    derivative of silu, first + s - 2 s first, times the adjoint is adjoint_z + s (adjoint - 2 adjoint_z).
    """

    def __init__(self, network: MLP, parameters: Float[Tensor, "R K P"], x: Float[Tensor, "R k B i"]) -> None:
        self.network, self.shape = network, parameters.shape
        runs, copies, _ = parameters.shape
        h = x.expand(runs, copies, *x.shape[2:]).reshape(runs * copies, *x.shape[2:])
        *hidden, (weight_out, bias_out) = network.layers(parameters)
        self.hidden, self.weight_out = hidden, weight_out
        self.h, self.sigmoid, self.first = [h], [], []
        one = h.new_ones(())
        for weight, bias in hidden:
            z = _linear(h, weight, bias)
            sigmoid = z.sigmoid()
            h = z.mul_(sigmoid)
            self.sigmoid.append(sigmoid)
            self.first.append(torch.lerp(h, one, sigmoid))
            self.h.append(h)
        self.value = _linear(h, weight_out, bias_out).view(runs, copies, -1)
        """Q(x), shape [R, K, B]."""

    def input_gradient(self, begin: int = 0) -> Float[Tensor, "R K B i"]:
        """dQ/dx[..., begin:], shape [R, K, B, in - begin]. Call this before calling the object with ``u``."""
        self.begin = begin
        adjoint = self.weight_out.transpose(1, 2).expand_as(self.h[-1])
        self.adjoint, self.adjoint_z = [], []
        for n in reversed(range(len(self.hidden))):
            adjoint_z = adjoint * self.first[n]
            self.adjoint.insert(0, adjoint)
            self.adjoint_z.insert(0, adjoint_z)
            weight = self.hidden[n][0]
            adjoint = torch.bmm(adjoint_z, self._along(weight, n).transpose(1, 2))
        if not self.hidden:
            adjoint = adjoint[..., begin:]
        return adjoint.reshape(*self.shape[:2], *adjoint.shape[1:])

    def __call__(self, c: Float[Tensor, "R K B"], u: Float[Tensor, "R K B i"] | None = None) -> Float[Tensor, "R K P"]:
        """df/dparameters from c = df/dQ and, if f uses the input gradient, u = df/d(input gradient)."""
        c = c.flatten(0, 1).unsqueeze(-1)
        tangents, z_dots = ([], []) if u is None else self._push(u.flatten(0, 1))
        weight_gradient = torch.bmm(c.transpose(1, 2), self.h[-1]).squeeze(1)
        if u is not None:
            self._along(weight_gradient, len(self.hidden)).add_(tangents[-1].sum(dim=1))
        pieces = [c.sum(dim=1), weight_gradient]
        a = c * self.weight_out.transpose(1, 2)  # adjoint of h
        for n in reversed(range(len(self.hidden))):
            a_z = a * self.first[n]
            if u is not None:
                bend = torch.sub(self.adjoint[n], self.adjoint_z[n], alpha=2.0)
                a_z.addcmul_(torch.addcmul(self.adjoint_z[n], self.sigmoid[n], bend), z_dots[n])
            weight_gradient = torch.bmm(self.h[n].transpose(1, 2), a_z)
            if u is not None:
                self._along(weight_gradient, n).add_(torch.bmm(tangents[n].transpose(1, 2), self.adjoint_z[n]))
            pieces += [a_z.sum(dim=1), weight_gradient.flatten(1)]
            if n:
                a = torch.bmm(a_z, self.hidden[n][0].transpose(1, 2))
        return self.network.join(pieces[::-1]).view(self.shape)

    def _along(self, of_inputs: Tensor, layer: int) -> Tensor:
        """Of a tensor with a layer's inputs as axis 1, those that a tangent moves: in the first layer not all."""
        return of_inputs if layer else of_inputs[:, self.begin :]

    def _push(self, h_dot: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Tangents of every layer's input (the last is the output layer's) and of every pre-activation."""
        tangents, z_dots = [h_dot], []
        for n, ((weight, _), first) in enumerate(zip(self.hidden, self.first, strict=True)):
            z_dots.append(torch.bmm(tangents[-1], self._along(weight, n)))
            tangents.append(z_dots[-1] * first)
        return tangents, z_dots


def all_finite(parameters: Float[Tensor, "R K P"]) -> Bool[Tensor, " R"]:
    """Whether all parameters of each run are finite: a sum is so only if every term is."""
    return parameters.sum(dim=(1, 2)).isfinite()
