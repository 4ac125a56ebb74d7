"""Gated recurrent units, on all their axes."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from throughtime.cells.cell import Cell


class GRU(Cell):
    r"""Gated recurrent unit (Cho et al. 2014), on either side of the two axes on which libraries differ.

    ``reset="after"`` (cuDNN, torch) resets the product, ``reset="before"`` (Cho et al.) the state:

    .. math::
        r_t &= \sigma(W_r x_t + U_r h_{t-1} + b_r) \\
        z_t &= \sigma(W_z x_t + U_z h_{t-1} + b_z) \\
        n_t &= \tanh(W_n x_t + b_n + r_t \circ (U_n h_{t-1} + d_n)) \quad\text{after} \\
        n_t &= \tanh(W_n x_t + b_n + U_n (r_t \circ h_{t-1})) \quad\text{before}

    ``update="keep"`` (Cho et al., cuDNN, torch) lets the gate keep the old state, ``update="write"`` (Chung et
    al. 2014) lets it write the new one:

    .. math::
        h_t &= z_t \circ h_{t-1} + (1 - z_t) \circ n_t \quad\text{keep} \\
        h_t &= (1 - z_t) \circ h_{t-1} + z_t \circ n_t \quad\text{write}

    The four by name: ("before", "keep") is Cho et al. 2014, ("before", "write") Chung et al. 2014, ("after",
    "keep") torch.nn, cuDNN and Keras' default, ("after", "write") completes the square.

    Departure: biases, which Cho et al. leave out.

    Args:
        reset: "before" or "after" the recurrent product.
        update: whether the update gate "keep"s the old state or "write"s the new one.

    Raises:
        ValueError: reset or update is neither of its two values.
    """

    family = "GRU"
    equation = "r,z = σ(Wx + Uh + b);  n = tanh(Wx + r∘(Uh) + b);  h = z∘h + (1 - z)∘n"
    source = "Cho et al. 2014; Chung et al. 2014"

    def __init__(self, input_size: int, hidden_size: int, *, reset: str = "after", update: str = "keep") -> None:
        super().__init__(input_size, hidden_size)
        if reset not in ("before", "after"):
            raise ValueError(f"reset must be 'before' or 'after' the product, not {reset!r}")
        if update not in ("keep", "write"):
            raise ValueError(f"update must be 'keep' or 'write', not {update!r}")
        self.reset = reset
        self.update = update
        self.input = nn.Linear(input_size, 3 * hidden_size)  # r, z, n
        if reset == "after":
            self.recurrent = nn.Linear(hidden_size, 3 * hidden_size)  # r, z, n; its bias on n is d
        else:
            self.recurrent = nn.Linear(hidden_size, 2 * hidden_size, bias=False)  # r, z
            self.recurrent_candidate = nn.Linear(hidden_size, hidden_size, bias=False)  # n

    def step(self, x: Tensor, state: Any, noise: Any = None) -> tuple[Tensor, Any]:
        x_r, x_z, x_n = self.input(x).chunk(3, dim=-1)  # (B, H) each
        if self.reset == "after":
            h_r, h_z, h_n = self.recurrent(state.h).chunk(3, dim=-1)
            r, z = (x_r + h_r).sigmoid(), (x_z + h_z).sigmoid()
            n = (x_n + r * h_n).tanh()
        else:
            h_r, h_z = self.recurrent(state.h).chunk(2, dim=-1)
            r, z = (x_r + h_r).sigmoid(), (x_z + h_z).sigmoid()
            n = (x_n + self.recurrent_candidate(r * state.h)).tanh()
        if self.update == "keep":
            h = z * state.h + (1 - z) * n
        else:
            h = (1 - z) * state.h + z * n
        return h, self.State(h)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, reset={self.reset!r}, update={self.update!r}"
