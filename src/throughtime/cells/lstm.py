"""Long short-term memory, in all its variants. Gates stand in the order i, f, g, o, as in torch."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from throughtime.cells.cell import Cell


class MemoryState(NamedTuple):
    """The state of every LSTM."""

    h: Tensor  # (B, H); (B, P) with a projection
    c: Tensor  # (B, H)


class LSTM(Cell):
    r"""Long short-term memory (Hochreiter & Schmidhuber 1997) with a forget gate (Gers et al. 2000).

    .. math::
        i, f, g, o &= W x_t + U h_{t-1} + b \\
        c_t &= \sigma(f) \circ c_{t-1} + \sigma(i) \circ \tanh(g) \\
        h_t &= \sigma(o) \circ \tanh(c_t), \qquad y_t = h_t

    Departure: one bias a gate, where torch and cuDNN keep two that are only ever added. The forget gate's bias
    starts at 1 (Gers et al. 2000; Jozefowicz et al. 2015), so that a new network remembers.

    >>> y, (h, c) = LSTM(3, 5)(torch.zeros(2, 3))
    >>> y.shape, c.shape
    (torch.Size([2, 5]), torch.Size([2, 5]))

    Args:
        forget_bias: what the forget gate's bias starts at; None leaves it as random as the others.
    """

    family = "LSTM"
    equation = "i,f,g,o = Wx + Uh + b;  c = σ(f)∘c + σ(i)∘tanh(g);  h = σ(o)∘tanh(c)"
    source = "Hochreiter & Schmidhuber 1997; Gers, Schmidhuber & Cummins 2000"

    State = MemoryState

    def __init__(self, input_size: int, hidden_size: int, *, forget_bias: float | None = 1.0) -> None:
        super().__init__(input_size, hidden_size)
        self.input = nn.Linear(input_size, 4 * hidden_size)
        self.recurrent = nn.Linear(hidden_size, 4 * hidden_size, bias=False)
        set_forget_bias(self.input.bias[hidden_size : 2 * hidden_size], forget_bias)

    def step(self, x: Tensor, state: Any, noise: Any = None) -> tuple[Tensor, Any]:
        i, f, g, o = (self.input(x) + self.recurrent(state.h)).chunk(4, dim=-1)  # (B, H) each
        c = f.sigmoid() * state.c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        return h, self.State(h, c)


class OriginalLSTM(Cell):
    r"""Long short-term memory as first published, without a forget gate (Hochreiter & Schmidhuber 1997).

    .. math::
        i, g, o &= W x_t + U h_{t-1} + b \\
        c_t &= c_{t-1} + \sigma(i) \circ \tanh(g) \\
        h_t &= \sigma(o) \circ \tanh(c_t)

    Departures: the squashing functions are tanh where the paper scales logistic functions to [-2, 2] and
    [-1, 1]; gates are one to a cell, not one to a block; gradients are exact, not truncated at the gates.
    """

    family = "LSTM"
    equation = "i,g,o = Wx + Uh + b;  c = c + σ(i)∘tanh(g);  h = σ(o)∘tanh(c)"
    source = "Hochreiter & Schmidhuber 1997"

    State = MemoryState

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)
        self.input = nn.Linear(input_size, 3 * hidden_size)
        self.recurrent = nn.Linear(hidden_size, 3 * hidden_size, bias=False)

    def step(self, x: Tensor, state: Any, noise: Any = None) -> tuple[Tensor, Any]:
        i, g, o = (self.input(x) + self.recurrent(state.h)).chunk(3, dim=-1)  # (B, H) each
        c = state.c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        return h, self.State(h, c)


class PeepholeLSTM(Cell):
    r"""LSTM whose gates look at the memory cell through diagonal weights (Gers & Schmidhuber 2000).

    .. math::
        i, f, g, o &= W x_t + U h_{t-1} + b \\
        c_t &= \sigma(f + p_f \circ c_{t-1}) \circ c_{t-1} + \sigma(i + p_i \circ c_{t-1}) \circ \tanh(g) \\
        h_t &= \sigma(o + p_o \circ c_t) \circ \phi(c_t)

    Two forms are in use: ``form="gers2000"`` puts the cell out unsquashed, \phi(c) = c, as Gers & Schmidhuber
    do; ``form="chung2014"`` (Chung et al. 2014; Graves 2013; ONNX) squashes it, \phi(c) = tanh(c).

    Args:
        form: "gers2000" or "chung2014".
        forget_bias: see `LSTM`.

    Raises:
        ValueError: the form is unknown.
    """

    family = "LSTM"
    equation = "c = σ(f + p∘c)∘c + σ(i + p∘c)∘tanh(g);  h = σ(o + p∘c)∘φ(c)"
    source = "Gers & Schmidhuber 2000; Chung et al. 2014"

    State = MemoryState

    def __init__(
        self, input_size: int, hidden_size: int, *, form: str = "gers2000", forget_bias: float | None = 1.0
    ) -> None:
        super().__init__(input_size, hidden_size)
        if form not in ("gers2000", "chung2014"):
            raise ValueError(f"form must be 'gers2000' or 'chung2014', not {form!r}")
        self.form = form
        self.input = nn.Linear(input_size, 4 * hidden_size)
        self.recurrent = nn.Linear(hidden_size, 4 * hidden_size, bias=False)
        bound = hidden_size**-0.5
        self.peephole = nn.Parameter(torch.empty(3, hidden_size).uniform_(-bound, bound))  # i, f, o
        set_forget_bias(self.input.bias[hidden_size : 2 * hidden_size], forget_bias)

    def step(self, x: Tensor, state: Any, noise: Any = None) -> tuple[Tensor, Any]:
        i, f, g, o = (self.input(x) + self.recurrent(state.h)).chunk(4, dim=-1)  # (B, H) each
        p_i, p_f, p_o = self.peephole.unbind(0)  # (H,) each
        c = (f + p_f * state.c).sigmoid() * state.c + (i + p_i * state.c).sigmoid() * g.tanh()
        squashed = c if self.form == "gers2000" else c.tanh()
        h = (o + p_o * c).sigmoid() * squashed
        return h, self.State(h, c)


class CoupledLSTM(Cell):
    r"""LSTM with input and forget gate coupled, f = 1 - i (Greff et al. 2015, "CIFG").

    .. math::
        i, g, o &= W x_t + U h_{t-1} + b \\
        c_t &= (1 - \sigma(i)) \circ c_{t-1} + \sigma(i) \circ \tanh(g) \\
        h_t &= \sigma(o) \circ \tanh(c_t)

    Departure: no peepholes, which Greff et al. keep in all their variants but one.

    Args:
        forget_bias: as 1 - \sigma(i) = \sigma(-i), the input gate's bias starts at minus this.
    """

    family = "LSTM"
    equation = "i,g,o = Wx + Uh + b;  c = (1 - σ(i))∘c + σ(i)∘tanh(g);  h = σ(o)∘tanh(c)"
    source = "Greff et al. 2015"

    State = MemoryState

    def __init__(self, input_size: int, hidden_size: int, *, forget_bias: float | None = 1.0) -> None:
        super().__init__(input_size, hidden_size)
        self.input = nn.Linear(input_size, 3 * hidden_size)
        self.recurrent = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        set_forget_bias(self.input.bias[:hidden_size], None if forget_bias is None else -forget_bias)

    def step(self, x: Tensor, state: Any, noise: Any = None) -> tuple[Tensor, Any]:
        i, g, o = (self.input(x) + self.recurrent(state.h)).chunk(3, dim=-1)  # (B, H) each
        i = i.sigmoid()
        c = (1 - i) * state.c + i * g.tanh()
        h = o.sigmoid() * c.tanh()
        return h, self.State(h, c)


class ProjectedLSTM(Cell):
    r"""LSTM with a recurrent projection (Sak, Senior & Beaufays 2014).

    .. math::
        i, f, g, o &= W x_t + U h_{t-1} + b \\
        c_t &= \sigma(f) \circ c_{t-1} + \sigma(i) \circ \tanh(g) \\
        h_t &= P \, (\sigma(o) \circ \tanh(c_t)), \qquad y_t = h_t

    Departure: no peepholes and no second, non-recurrent projection, as in torch's ``proj_size``.

    Args:
        projection_size: features of h and y, fewer than H; a quarter of H unless given.
        forget_bias: see `LSTM`.
    """

    family = "LSTM"
    equation = "i,f,g,o = Wx + Uh + b;  c = σ(f)∘c + σ(i)∘tanh(g);  h = P(σ(o)∘tanh(c))"
    source = "Sak, Senior & Beaufays 2014"

    State = MemoryState

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        projection_size: int | None = None,
        forget_bias: float | None = 1.0,
    ) -> None:
        projection_size = max(1, hidden_size // 4) if projection_size is None else projection_size
        super().__init__(input_size, hidden_size, output_size=projection_size)
        self.input = nn.Linear(input_size, 4 * hidden_size)
        self.recurrent = nn.Linear(projection_size, 4 * hidden_size, bias=False)
        self.projection = nn.Linear(hidden_size, projection_size, bias=False)
        set_forget_bias(self.input.bias[hidden_size : 2 * hidden_size], forget_bias)

    def initial_state(self, batch_size: int) -> Any:
        return self.State(self._zeros(batch_size, self.output_size), self._zeros(batch_size, self.hidden_size))

    def step(self, x: Tensor, state: Any, noise: Any = None) -> tuple[Tensor, Any]:
        i, f, g, o = (self.input(x) + self.recurrent(state.h)).chunk(4, dim=-1)  # (B, H) each
        c = f.sigmoid() * state.c + i.sigmoid() * g.tanh()
        h = self.projection(o.sigmoid() * c.tanh())  # (B, P)
        return h, self.State(h, c)


class LayerNormLSTM(Cell):
    r"""Layer-normalised LSTM (Ba, Kiros & Hinton 2016, supplementary equations 20 to 22).

    .. math::
        i, f, g, o &= \mathrm{LN}(W x_t) + \mathrm{LN}(U h_{t-1}) + b \\
        c_t &= \sigma(f) \circ c_{t-1} + \sigma(i) \circ \tanh(g) \\
        h_t &= \sigma(o) \circ \tanh(\mathrm{LN}(c_t))

    The variant: each LN runs over all four gates together (4H), as the paper has it, and the cell is normalised
    on its way out (``normalise_cell=True``) but carried on as it is. Other libraries normalise each gate apart.

    Args:
        normalise_cell: LN of c before the output gate.
        forget_bias: see `LSTM`.
    """

    family = "LSTM"
    equation = "i,f,g,o = LN(Wx) + LN(Uh) + b;  c = σ(f)∘c + σ(i)∘tanh(g);  h = σ(o)∘tanh(LN(c))"
    source = "Ba, Kiros & Hinton 2016"

    State = MemoryState

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        normalise_cell: bool = True,
        forget_bias: float | None = 1.0,
    ) -> None:
        super().__init__(input_size, hidden_size)
        self.input = nn.Linear(input_size, 4 * hidden_size, bias=False)
        self.recurrent = nn.Linear(hidden_size, 4 * hidden_size, bias=False)
        self.norm_input = nn.LayerNorm(4 * hidden_size)
        self.norm_recurrent = nn.LayerNorm(4 * hidden_size, bias=False)
        self.norm_cell = nn.LayerNorm(hidden_size) if normalise_cell else nn.Identity()
        # the bias b of the equation is that of the input's normalisation
        set_forget_bias(self.norm_input.bias[hidden_size : 2 * hidden_size], forget_bias)

    def step(self, x: Tensor, state: Any, noise: Any = None) -> tuple[Tensor, Any]:
        gates = self.norm_input(self.input(x)) + self.norm_recurrent(self.recurrent(state.h))  # (B, 4H)
        i, f, g, o = gates.chunk(4, dim=-1)
        c = f.sigmoid() * state.c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * self.norm_cell(c).tanh()
        return h, self.State(h, c)


def set_forget_bias(bias: Tensor, value: float | None) -> None:
    """Starts a gate's bias at a value; None leaves it as it is."""
    if value is not None:
        with torch.no_grad():
            bias.fill_(value)
