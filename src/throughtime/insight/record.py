"""A run of any network with every state of every cell on record."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from throughtime.cells.cell import Cell
from throughtime.engine import unroll
from throughtime.layers.recurrent import Recurrent
from throughtime.learning.tapped import Record, Tapped, stacked


@dataclass(frozen=True)
class Layer:
    """One cell of a network and what it did, in the order in which it ran (the last step first, in reverse)."""

    name: str  # "" for a network that is one cell
    cell: Cell
    record: Record
    reverse: bool

    def curve_name(self, field: str) -> str:
        return f"{self.name} {field}".strip()

    def points(self, row: int | None = None) -> tuple[Tensor, Any, Any]:
        """What each step was given: x (N, I), state, noise, cut from the graph; N = T of a row, or T * B of all."""
        x = stacked(self.record.inputs).detach()
        batch = self.record.inputs[0].shape[0]

        def chosen(value: Any) -> Any:
            if value is None:
                return None
            if isinstance(value, Tensor):
                value = value.detach()
                return value if row is None else value.unflatten(0, (-1, batch))[:, row]
            parts = [chosen(part) for part in value]
            return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)

        return chosen(x), chosen(stacked(self.record.before)), chosen(stacked(self.record.noise))


def record_run(network: nn.Module, x: Tensor, **options: Any) -> tuple[Tensor, list[Layer]]:
    """Runs a network on ``x``; the output, and a record of each cell. Everything is attached to the graph.

    Args:
        network: a `Cell`, a `Recurrent`, or any module with a `Recurrent` in it.
        x: its input.
        options: passed on (state, lengths, resets, or what the module takes).

    Raises:
        ValueError: the module has no `Recurrent` in it, or did not run it, or there is no step to see.
    """
    with torch.enable_grad():
        if isinstance(network, Cell):
            tapped = Tapped(network)
            y = unroll(tapped, x, **{**options, "backend": "reference"})[0]
            layers = [Layer("", network, tapped.record, bool(options.get("reverse", False)))]
        else:
            with recording(network) as layers:
                result = network(x, **options)
            y = result if isinstance(result, Tensor) else result[0]
    if not all(layer.record.after for layer in layers):
        raise ValueError("there is no step to see: the input has none, or the network did not run its recurrent layers")
    return y, layers


def overflow(layers: list[Layer]) -> tuple[Layer, int] | None:
    """The layer whose state is no longer finite, and how many steps it took until then; None where all are finite.

    Of several it is the one that got least far; layers above it only inherit what it gives.
    """
    found = []
    for layer in layers:
        for count, state in enumerate(layer.record.after):
            if not all(bool(field.isfinite().all()) for field in state):
                found.append((layer, count))
                break
    return min(found, key=lambda one: one[1], default=None)


def check_finite(layers: list[Layer]) -> None:
    """
    Raises:
        ValueError: a state is not finite, so that there is nothing to measure in it.
    """
    found = overflow(layers)
    if found is not None:
        layer, count = found
        where = f"the state of {layer.name}" if layer.name else "the state"
        raise ValueError(f"{where} is no longer finite after {count} steps; look at fewer, or smaller weights or input")


@contextlib.contextmanager
def recording(network: nn.Module) -> Iterator[list[Layer]]:
    """While open, every `Recurrent` in the network keeps a record of its cells, on the reference backend.

    >>> import throughtime as tt
    >>> net = tt.Recurrent(tt.cells.GRU, 3, 5, num_layers=2)
    >>> with recording(net) as layers:
    ...     _ = net(torch.zeros(1, 4, 3))
    >>> [(layer.name, len(layer.record.after)) for layer in layers]
    [('layer 0', 4), ('layer 1', 4)]

    Raises:
        ValueError: the network has no `Recurrent` in it.
    """
    found = [(path, module) for path, module in network.named_modules() if isinstance(module, Recurrent)]
    if not found:
        raise ValueError(f"{type(network).__name__} has no throughtime.Recurrent in it to look into")
    layers: list[Layer] = []
    undo: list[tuple[nn.ModuleList, int, nn.Module]] = []
    hooks = []
    try:
        for path, recurrent in found:
            hooks.append(recurrent.register_forward_pre_hook(_on_reference, with_kwargs=True))
            prefix = f"{path} " if len(found) > 1 else ""
            for cells, reverse in ((recurrent.forward_cells, False), (recurrent.backward_cells, True)):
                for k, cell in enumerate(cells):
                    tapped = Tapped(cast(Cell, cell)).train(cell.training)
                    direction = (" backward" if reverse else " forward") if recurrent.bidirectional else ""
                    layers.append(Layer(f"{prefix}layer {k}{direction}", tapped.cell, tapped.record, reverse))
                    undo.append((cells, k, cell))
                    cells[k] = tapped
        yield layers
    finally:
        for cells, k, cell in undo:
            cells[k] = cell
        for hook in hooks:
            hook.remove()


def _on_reference(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return args, {**kwargs, "backend": "reference"}
