"""A recurrent network from numbers to the chances of the next one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from throughtime.cells import Cell
from throughtime.cells.catalogue import cell_named
from throughtime.data import IGNORED
from throughtime.engine.cpu.writing import Writer
from throughtime.engine.stepper import rounds, step_refusal, warn_slow
from throughtime.layers import Recurrent

BLOCK = 1 << 24  # logits that are in memory together, at most


class NextUnit(nn.Module):
    """Embedding, layers of a cell, and an output layer over the vocabulary.

    >>> import torch
    >>> network = NextUnit(11, cell="gru", hidden=5, embedding=3)
    >>> logits, state = network(torch.zeros(2, 7, dtype=torch.long))
    >>> logits.shape
    torch.Size([2, 7, 11])

    Args:
        size: units in the vocabulary V.
        cell: a name of the catalogue.
        hidden: units of each layer.
        layers: of the cell.
        embedding: features of an embedded unit.
        dropout: the chance of an output of a layer to be dropped, in training.
        embedding_dropout: that of a feature of an embedded unit.
        tied: the output layer's weights are the embedding's (Press & Wolf 2017). Where the layers' output has another
            size than the embedding, a linear map stands between.

    Raises:
        ValueError: the cell is unknown, or a size or chance out of range.
    """

    def __init__(
        self,
        size: int,
        *,
        cell: str = "lstm",
        hidden: int,
        layers: int = 1,
        embedding: int,
        dropout: float = 0.0,
        embedding_dropout: float = 0.0,
        tied: bool = False,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size, embedding)
        self.embedding_dropout = nn.Dropout(embedding_dropout)
        self.recurrent = Recurrent(cell_named(cell), embedding, hidden, layers, dropout=dropout)
        self.dropout = nn.Dropout(dropout)
        width = self.recurrent.output_size
        self.between = nn.Linear(width, embedding) if tied and width != embedding else nn.Identity()
        self.output = nn.Linear(embedding if tied else width, size)
        if tied:
            nn.init.normal_(self.embedding.weight, std=embedding**-0.5)  # sound as weights of an output layer
            self.output.weight = self.embedding.weight

    def forward(self, numbers: Tensor, state: Any = None, resets: Tensor | None = None) -> tuple[Tensor, Any]:
        """``numbers (B, T) -> (logits (B, T, V), state)``; ``resets`` as `throughtime.unroll` has them."""
        y, state = self._read(numbers, state, resets)
        return self.output(y), state

    def cost(
        self, numbers: Tensor, targets: Tensor, state: Any = None, resets: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        """The sum of -ln p(target) over the targets (B, T) that are not `IGNORED`, and the state.

        With a large vocabulary the logits are made a block at a time, and again for the gradient, so that they never
        stand in memory together.
        """
        y, state = self._read(numbers, state, resets)
        block = max(1, BLOCK // self.output.out_features)
        parts = list(zip(y.flatten(0, 1).split(block), targets.flatten().split(block), strict=True))
        if len(parts) == 1:
            return self._cost(*parts[0]), state
        costs = [checkpoint(self._cost, *part, use_reentrant=False, preserve_rng_state=False) for part in parts]
        return torch.stack(costs).sum(), state

    def step(self, numbers: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """One step: ``numbers (B,) -> (logits (B, V), state)``."""
        y, state = self.recurrent.step(self.embedding_dropout(self.embedding(numbers)), state)
        return self.output(self.between(self.dropout(y))), state

    def writer(self, context: Sequence[int], weights: torch.dtype | None = None) -> Writer | None:
        """What writes on from a context natively, or None, with a word why, where the kernels cannot take the cells.

        Args:
            weights: as `throughtime.engine.stepper.Stepper` has it.

        Raises:
            ValueError: as there.

        Warns:
            SlowPathWarning: it cannot.
        """
        if not context:
            raise ValueError("a context has at least one number")
        cells = [cast(Cell, cell) for cell in self.recurrent.forward_cells]
        if self.training:
            why: str | None = "it is in training; call eval() first"
        elif any(part._forward_hooks or part._forward_pre_hooks for part in self.modules()):
            why = "a hook on one of its parts has to be called"
        else:
            why = step_refusal(cells)
        half = rounds(weights, cells, why)
        if why is not None:
            warn_slow(why)
            return None
        linears = [part for part in (self.between, self.output) if isinstance(part, nn.Linear)]
        writer = Writer(cells, self.embedding, linears, half=half)
        *before, writer.number = context
        if before:
            with torch.inference_mode():
                _, writer.stack.state = self.recurrent(self.embedding(torch.tensor([before])))
        return writer

    def _read(self, numbers: Tensor, state: Any, resets: Tensor | None) -> tuple[Tensor, Any]:
        x = self.embedding_dropout(self.embedding(numbers))  # (B, T, E)
        y, state = self.recurrent(x, state, resets=resets)
        return self.between(self.dropout(y)), state  # (B, T, .)

    def _cost(self, y: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self.output(y), targets, ignore_index=IGNORED, reduction="sum")
