"""Recurrences that are linear in their state, so that time can be run in parallel."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from throughtime.cells.cell import Cell


class LinearCell(Cell):
    r"""A recurrence that is linear and diagonal in its state:

    .. math:: h_t = a_t(x_t) \circ h_{t-1} + b_t(x_t), \qquad y_t = \mathrm{read}(x_t, h_t)

    A subclass writes ``coefficients`` and, where the output is not the state, ``read``. Both see only the input
    (and h_t, for read), so the engine runs them for all steps at once and the recurrence as an associative scan.
    """

    def coefficients(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``x (..., I) -> a (..., H), b (..., H)``, real or complex."""
        raise NotImplementedError(f"{type(self).__name__} has to define coefficients(self, x)")

    def read(self, x: Tensor, h: Tensor) -> Tensor:
        """``x (..., I), h (..., H) -> y (..., O)``."""
        return h

    def step(self, x: Tensor, state: Any, noise: Any = None) -> tuple[Tensor, Any]:
        a, b = self.coefficients(x)
        h = a * state.h + b  # (B, H)
        return self.read(x, h), self.State(h)


class MinGRU(LinearCell):
    r"""Minimal GRU (Feng et al. 2024, "Were RNNs all we needed?").

    .. math::
        z_t &= \sigma(W_z x_t + b_z), \quad n_t = W_n x_t + b_n \\
        h_t &= (1 - z_t) \circ h_{t-1} + z_t \circ n_t

    The form is the paper's first (its section 3.1); its log-space form changes n to keep it positive, which
    a scan in linear space has no need of.
    """

    family = "linear"
    equation = "z = σ(Wx + b),  n = Wx + b;  h = (1 - z)∘h + z∘n"
    source = "Feng et al. 2024"

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)
        self.input = nn.Linear(input_size, 2 * hidden_size)  # z, n

    def coefficients(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z, n = self.input(x).chunk(2, dim=-1)  # (..., H) each
        z = z.sigmoid()
        return 1 - z, z * n


class MinLSTM(LinearCell):
    r"""Minimal LSTM (Feng et al. 2024): forget and input gate, normalised to add up to one.

    .. math::
        f_t, i_t &= \sigma(W_f x_t + b_f), \; \sigma(W_i x_t + b_i) \\
        h_t &= \frac{f_t}{f_t + i_t} \circ h_{t-1} + \frac{i_t}{f_t + i_t} \circ (W_n x_t + b_n)

    Args:
        forget_bias: what the forget gate's bias starts at; None leaves it as random as the others.
    """

    family = "linear"
    equation = "f,i = σ(Wx + b),  n = Wx + b;  h = f/(f+i)∘h + i/(f+i)∘n"
    source = "Feng et al. 2024"

    def __init__(self, input_size: int, hidden_size: int, *, forget_bias: float | None = 1.0) -> None:
        super().__init__(input_size, hidden_size)
        self.input = nn.Linear(input_size, 3 * hidden_size)  # f, i, n
        if forget_bias is not None:
            with torch.no_grad():
                self.input.bias[:hidden_size].fill_(forget_bias)

    def coefficients(self, x: Tensor) -> tuple[Tensor, Tensor]:
        f, i, n = self.input(x).chunk(3, dim=-1)  # (..., H) each
        f, i = f.sigmoid(), i.sigmoid()
        return f / (f + i), i / (f + i) * n


class LRU(LinearCell):
    r"""Linear recurrent unit (Orvieto et al. 2023): a diagonal complex recurrence, stable by construction.

    .. math::
        \lambda &= \exp(-\exp(\nu) + i \exp(\theta)), \qquad \gamma = \sqrt{1 - |\lambda|^2} \\
        h_t &= \lambda \circ h_{t-1} + \gamma \circ (B x_t), \qquad y_t = \mathrm{Re}(C h_t) + D \circ x_t

    The state h is complex (B, H). Departures: \gamma is always that of its \lambda, where the paper learns it from this
    start; D is a full matrix, where the paper's is diagonal (its I is its O).

    Args:
        output_size: features O of y; H unless given.
        radius: |\lambda| starts between these two.
        max_phase: the angle of \lambda starts in [0, max_phase].
    """

    family = "linear"
    equation = "h = λ∘h + γ∘(Bx), |λ| < 1, complex;  y = Re(Ch) + Dx"
    source = "Orvieto et al. 2023"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        output_size: int | None = None,
        radius: tuple[float, float] = (0.9, 0.999),
        max_phase: float = 2 * math.pi,
    ) -> None:
        super().__init__(input_size, hidden_size, output_size=output_size)
        smallest, largest = radius
        if not 0 <= smallest < largest < 1:
            raise ValueError(f"radius must be two numbers in [0, 1), the smaller first, not {radius!r}")
        # |λ| uniform on the ring between the radii (the paper's lemma 3.2)
        modulus = (torch.rand(hidden_size) * (largest**2 - smallest**2) + smallest**2).sqrt()
        self.nu_log = nn.Parameter((-modulus.clamp_min(1e-6).log()).log())  # (H,)
        self.theta_log = nn.Parameter((max_phase * torch.rand(hidden_size).clamp_min(1e-6)).log())  # (H,)
        self.input = nn.Linear(input_size, 2 * hidden_size, bias=False)  # B: real, imaginary
        self.output = nn.Linear(2 * hidden_size, self.output_size, bias=False)  # C: real, minus imaginary
        self.skip = nn.Linear(input_size, self.output_size, bias=False)  # D
        with torch.no_grad():
            self.input.weight.normal_(std=(2 * input_size) ** -0.5)
            self.output.weight.normal_(std=hidden_size**-0.5)

    def initial_state(self, batch_size: int) -> Any:
        zeros = self._zeros(batch_size, self.hidden_size)
        if zeros.dtype not in (torch.float32, torch.float64):
            kind = str(zeros.dtype).removeprefix("torch.")
            raise ValueError(f"LRU's state is complex, which PyTorch has for float32 and float64 alone, not {kind}")
        return self.State(torch.complex(zeros, zeros))

    def coefficients(self, x: Tensor) -> tuple[Tensor, Tensor]:
        decay, phase = -self.nu_log.exp(), self.theta_log.exp()  # (H,)
        modulus = decay.exp()
        lam = torch.polar(modulus, phase)
        real, imaginary = self.input(x).chunk(2, dim=-1)  # (..., H)
        # 1 - |λ|^2 without cancellation
        gamma = (-torch.expm1(2 * decay)).sqrt()
        return lam.expand(real.shape), torch.complex(gamma * real, gamma * imaginary)

    def read(self, x: Tensor, h: Tensor) -> Tensor:
        return self.output(torch.cat([h.real, h.imag], dim=-1)) + self.skip(x)  # (..., O)
