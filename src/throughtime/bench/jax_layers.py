"""The cells that torch.nn has, as one writes them in JAX: `lax.scan`, compiled, the input product outside of it.

Sequences are time first, as the scan wants them. JAX takes a thread for each core, whatever PyTorch is told.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from throughtime.bench.comparison import Comparison, Point
from throughtime.bench.measure import interleaved
from throughtime.bench.speed import Subject
from throughtime.engine import unroll

CELLS = ("LSTM", "GRU", "Elman")
REST = 0.01  # seconds before each turn: JAX's threads look out for work for a while, and so do PyTorch's


def missing() -> str | None:
    """Why JAX cannot be compared here, or None."""
    if any(importlib.util.find_spec(name) is None for name in ("jax", "jaxlib")):
        return "JAX is not measured: jax not installed"
    threads, cores = torch.get_num_threads(), _cores()
    if threads != cores:
        return f"JAX is not measured: it takes a thread for each of {cores} cores, PyTorch {threads}"
    return None


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def compare_with_jax(subject: Subject, point: Point, what: str, seconds: float) -> list[Comparison]:
    """Times a cell on the compiled backend against JAX, turn by turn, once outputs and gradients are found equal.

    Raises:
        RuntimeError: they differ; nothing is timed then.
    """
    torch.manual_seed(0)
    size = point.hidden
    cell = subject.make(size, size)
    x = torch.randn(point.batch, point.steps, size, requires_grad=what == "training")
    dy = torch.randn(point.batch, point.steps, size)
    leaves = [x, *_weights(cell)]
    forward, backward = _compiled(subject.name)
    jax: Any = importlib.import_module("jax")
    given = [jax.device_put(leaf.detach().numpy()) for leaf in (x.transpose(0, 1), *leaves[1:], dy.transpose(0, 1))]

    def ours() -> list[Tensor]:
        if what == "training":
            y = unroll(cell, x, backend="cpu")[0]
            return [y.detach(), *torch.autograd.grad(y, leaves, dy)]
        with torch.no_grad():
            return [unroll(cell, x, backend="cpu")[0]]

    def theirs() -> Any:
        made = backward(given[:-1], given[-1]) if what == "training" else forward(given[:-1])
        return jax.block_until_ready(made)

    made = theirs()
    others = [made[0][1], *made[1]] if what == "training" else [made]
    for k, (one, other) in enumerate(zip(ours(), others, strict=True)):
        expected = torch.from_numpy(jax.device_get(other).copy())
        if k < 2:  # y and the gradient by x
            expected = expected.transpose(0, 1)
        if not torch.allclose(one, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max())):
            raise RuntimeError(f"{subject.name} at {point} differs from JAX; not timed")
    taken = interleaved([ours, theirs], seconds, rest=REST)
    work = 2.0 * point.batch * point.steps * subject.gates * size * 2 * size * (3 if what == "training" else 1)
    return [Comparison(what, subject.name, "JAX", point, taken[0], taken[1], work)]


def _weights(cell: Any) -> list[Tensor]:
    biases = [bias for bias in (cell.input.bias, cell.recurrent.bias) if bias is not None]
    return [cell.input.weight, cell.recurrent.weight, *biases]


@functools.cache
def _compiled(name: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """``forward([x, W, U, *biases]) -> y`` and ``backward([...], dy) -> ((loss, y), gradients)``, compiled."""
    jax: Any = importlib.import_module("jax")
    jax.config.update("jax_platforms", "cpu")
    jnp: Any = importlib.import_module("jax.numpy")
    sigmoid, tanh = jax.nn.sigmoid, jnp.tanh

    def lstm(state: Any, x: Any, product: Any) -> tuple[Any, Any]:
        h, c = state
        i, f, g, o = jnp.split(x + product(h), 4, axis=-1)
        c = sigmoid(f) * c + sigmoid(i) * tanh(g)
        h = sigmoid(o) * tanh(c)
        return (h, c), h

    def gru(h: Any, x: Any, product: Any) -> tuple[Any, Any]:
        x_r, x_z, x_n = jnp.split(x, 3, axis=-1)
        h_r, h_z, h_n = jnp.split(product(h), 3, axis=-1)
        r, z = sigmoid(x_r + h_r), sigmoid(x_z + h_z)
        h = z * h + (1 - z) * tanh(x_n + r * h_n)
        return h, h

    def elman(h: Any, x: Any, product: Any) -> tuple[Any, Any]:
        h = tanh(x + product(h))
        return h, h

    step = {"LSTM": lstm, "GRU": gru, "Elman": elman}[name]

    def forward(given: list[Any]) -> Any:
        x, w, u, b, *inner = given
        zeros = jnp.zeros((x.shape[1], u.shape[1]), x.dtype)
        recurrent, bias = u.T, inner[0] if inner else 0

        def one(state: Any, row: Any) -> tuple[Any, Any]:
            return step(state, row, lambda h: h @ recurrent + bias)

        return jax.lax.scan(one, (zeros, zeros) if name == "LSTM" else zeros, x @ w.T + b)[1]

    def loss(given: list[Any], dy: Any) -> tuple[Any, Any]:
        y = forward(given)
        return jnp.vdot(y, dy), y

    return jax.jit(forward), jax.jit(jax.value_and_grad(loss, has_aux=True))
