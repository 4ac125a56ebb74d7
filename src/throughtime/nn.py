"""`RNN`, `LSTM`, `GRU` and their single steps as in torch.nn, run by the cells of `throughtime.cells`.

A module of the same name in torch.nn can be replaced by one of these, in code or by its state_dict: constructor,
parameters and their names, initial values, results and gradients are torch's. The equations are not written here a
second time: each layer fills a cell with its parameters and unrolls it.

Shapes follow torch.nn and so are time first, (T, B, I), unless ``batch_first``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from throughtime import cells
from throughtime.cells import Cell
from throughtime.engine.unroll import unroll, unroll_both

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell"]


class _Layers(nn.RNNBase):
    """What the three share. From `torch.nn.RNNBase` come the parameters, their initial values and the checks."""

    def __init__(self, mode: str, input_size: int, hidden_size: int, num_layers: int, **options: Any) -> None:
        super().__init__(mode, input_size, hidden_size, num_layers, **options)
        self._directions = ("", "_reverse") if self.bidirectional else ("",)
        features = (self.proj_size or hidden_size) * len(self._directions)
        # One cell a layer, to be filled with that layer's parameters. A tuple, so that torch does not take them for
        # submodules; on the meta device, where they cost no memory and draw no random numbers.
        with torch.device("meta"):
            self._cells = tuple(self._cell(features if k else input_size) for k in range(num_layers))
        if not self.bias:
            for cell in self._cells:
                without_bias(cell)

    def _cell(self, input_size: int) -> Cell:
        raise NotImplementedError

    def flatten_parameters(self) -> None:
        """Nothing: parameters need not lie side by side here. Kept because callers of torch.nn call it."""

    def forward(self, input: Any, hx: Any = None, *, lengths: Any = None) -> tuple[Any, Any]:
        """As in torch.nn, with one argument more.

        Args:
            input: (T, B, I); (B, T, I) with ``batch_first``; (T, I) for a single sequence; or a PackedSequence.
            hx: the initial state, (layers * directions, B, H), or without B for a single sequence; the LSTM's is a
                pair (h, c). Zeros unless given.
            lengths: (B,) real steps of each sequence, in any order, 0 allowed, in place of packing: outputs past a
                length are zero, and the final state is that of the last real step.

        Returns:
            ``(output, state)``, laid out as ``input`` and ``hx`` are.

        Raises:
            ValueError: the input's number of dimensions or dtype, or the lengths, do not fit.
            RuntimeError: the input's features or the state's shape do not fit.
        """
        packed = input if isinstance(input, PackedSequence) else None
        single = packed is None and input.dim() == 2
        if lengths is not None and (packed is not None or single):
            raise ValueError(
                "lengths go with a padded batch; a PackedSequence has its own, a single sequence needs none"
            )
        if packed is not None:
            x, lengths = pad_packed_sequence(packed, batch_first=True)
        elif single:
            x = input[None]
        elif input.dim() == 3:
            x = input if self.batch_first else input.transpose(0, 1)
        else:
            name = type(self).__name__
            raise ValueError(f"{name}: Expected input to be 2D or 3D, got {input.dim()}D tensor instead")
        self.check_input(x, None)  # (B, T, I)
        states = None if hx is None else self._states(hx, x.shape[0], single)

        finals: list[Any] = []
        for k, cell in enumerate(self._cells):
            if k and self.dropout and self.training:
                x = self._drop(x, packed)
            directions = [filled(cell, self._weights(f"l{k}{direction}")) for direction in self._directions]
            given = None if states is None else states[len(finals) : len(finals) + len(directions)]
            if self.bidirectional:
                one, other = directions
                pair = None if given is None else (given[0], given[1])
                (y, final), (z, opposite) = unroll_both(one, other, x, pair, lengths=lengths)
                finals += [final, opposite]
                x = torch.cat([y, z], dim=-1)  # (B, T, O)
            else:
                x, final = unroll(directions[0], x, None if given is None else given[0], lengths=lengths)
                finals.append(final)

        stacked = [torch.stack(fields) for fields in zip(*finals, strict=True)]  # (layers * directions, B, H)
        state = tuple(field[:, 0] for field in stacked) if single else tuple(stacked)
        output: Any = x
        if packed is not None:
            output = pack_as(packed, x)
        elif single:
            output = x[0]
        elif not self.batch_first:
            output = x.transpose(0, 1).contiguous()  # as torch's is, so that callers' view() works
        return output, state if len(state) > 1 else state[0]

    def _weights(self, place: str) -> dict[str, Tensor]:
        """The parameters of one layer and direction, under the names that its cell gives them."""
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        tensors: list[Any] = [getattr(self, f"{name}_{place}", None) for name in names]
        weights = cell_parameters(self._cells[0], *tensors)
        if self.proj_size:
            weights["projection.weight"] = getattr(self, f"weight_hr_{place}")
        return weights

    def _states(self, hx: Any, batch_size: int, single: bool) -> list[tuple[Tensor, ...]]:
        """The initial state of each layer and direction, checked."""
        fields = (hx,) if isinstance(hx, Tensor) else tuple(hx)
        names = self._cells[0].State._fields
        if len(fields) != len(names):
            raise ValueError(f"hx must be ({', '.join(names)}), not of {len(fields)} parts")
        sizes = {"h": self.proj_size or self.hidden_size, "c": self.hidden_size}
        wanted = 2 if single else 3
        for name, field in zip(names, fields, strict=True):
            if field.dim() != wanted:
                what = "unbatched 2-D" if single else "batched 3-D"
                raise RuntimeError(f"For {what} input, {name} should also be {wanted}-D but got {field.dim()}-D tensor")
        if single:
            fields = tuple(field.unsqueeze(1) for field in fields)
        for name, field in zip(names, fields, strict=True):
            expected = (self.num_layers * len(self._directions), batch_size, sizes[name])
            self.check_hidden_size(field, expected, f"Expected hidden {name} size {{}}, got {{}}")
        return list(zip(*(field.unbind(0) for field in fields), strict=True))

    def _drop(self, x: Tensor, packed: PackedSequence | None) -> Tensor:
        """Dropout between layers, drawn in torch's order, time first or packed: the same seed drops the same."""
        if packed is None:
            return nn.functional.dropout(x.transpose(0, 1).contiguous(), self.dropout).transpose(0, 1)
        between = pack_as(packed, x)
        return pad_packed_sequence(
            between._replace(data=nn.functional.dropout(between.data, self.dropout)), batch_first=True
        )[0]


class RNN(_Layers):
    """Layers of `throughtime.cells.Elman`, in place of `torch.nn.RNN`.

    >>> y, h = RNN(3, 5, num_layers=2, nonlinearity="relu")(torch.zeros(7, 4, 3))
    >>> y.shape, h.shape
    (torch.Size([7, 4, 5]), torch.Size([2, 4, 5]))

    Args:
        nonlinearity: "tanh" or "relu"; the other arguments are those of `LSTM`, without ``proj_size``.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"Unknown nonlinearity {nonlinearity!r}. Select from 'tanh' or 'relu'.")
        self.nonlinearity = nonlinearity
        super().__init__(
            f"RNN_{nonlinearity.upper()}",
            input_size,
            hidden_size,
            num_layers,
            bias=bias,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=bidirectional,
            device=device,
            dtype=dtype,
        )

    def _cell(self, input_size: int) -> Cell:
        return cells.Elman(input_size, self.hidden_size, activation=self.nonlinearity)


class LSTM(_Layers):
    """Layers of `throughtime.cells.LSTM`, or `ProjectedLSTM`, in place of `torch.nn.LSTM`.

    >>> lstm, torchs = LSTM(3, 5, bidirectional=True), nn.LSTM(3, 5, bidirectional=True)
    >>> lstm.load_state_dict(torchs.state_dict())
    <All keys matched successfully>
    >>> x = torch.randn(7, 4, 3)
    >>> torch.allclose(lstm(x)[0], torchs(x)[0], atol=1e-6)
    True

    Args:
        input_size: features I of one input step.
        hidden_size: hidden units H.
        num_layers: layers; each takes the output of the one below.
        bias: whether there are biases.
        batch_first: input and output are (B, T, ...), not (T, B, ...); states are not touched by this.
        dropout: the probability of an output to be dropped between layers, in training.
        bidirectional: a second cell in each layer that runs from the last step to the first.
        proj_size: features of h and of the output, fewer than H; 0 for no projection.
        device: where the parameters are made, and ``dtype`` in which precision.

    Raises:
        ValueError: a size or the dropout is out of range.
        TypeError: a size is no int, or a flag no bool.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(
            "LSTM",
            input_size,
            hidden_size,
            num_layers,
            bias=bias,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=bidirectional,
            proj_size=proj_size,
            device=device,
            dtype=dtype,
        )

    def _cell(self, input_size: int) -> Cell:
        if self.proj_size:
            return cells.ProjectedLSTM(input_size, self.hidden_size, projection_size=self.proj_size)
        return cells.LSTM(input_size, self.hidden_size)


class GRU(_Layers):
    """Layers of `throughtime.cells.GRU` (reset after, update keeps), in place of `torch.nn.GRU`.

    >>> y, h = GRU(3, 5, batch_first=True)(torch.zeros(4, 7, 3), lengths=[7, 0, 2, 5])
    >>> y.shape, h.shape
    (torch.Size([4, 7, 5]), torch.Size([1, 4, 5]))

    The arguments are those of `LSTM`, without ``proj_size``.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(
            "GRU",
            input_size,
            hidden_size,
            num_layers,
            bias=bias,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=bidirectional,
            device=device,
            dtype=dtype,
        )

    def _cell(self, input_size: int) -> Cell:
        return cells.GRU(input_size, self.hidden_size)


class _Step(nn.RNNCellBase):
    """What the three single steps share. Constructor and parameters come from torch's class of the same name."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        with torch.device("meta"):
            cell = self._cell()
        if not self.bias:
            without_bias(cell)
        self._cells = (cell,)  # a tuple for the reason that `_Layers` has

    def _cell(self) -> Cell:
        raise NotImplementedError

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        """One step, as in torch.nn: input (B, I) or (I,), the state (B, H) or (H,), for the LSTM a pair (h, c).

        Raises:
            ValueError: the input or the state is not of one or two dimensions.
            RuntimeError: the features, the batch or the hidden size do not fit.
        """
        name, single = type(self).__name__, input.dim() == 1
        if input.dim() not in (1, 2):
            raise ValueError(f"{name}: Expected input to be 1D or 2D, got {input.dim()}D instead")
        x = input[None] if single else input
        if x.shape[1] != self.input_size:
            raise RuntimeError(f"{name}: input has {x.shape[1]} features, expected {self.input_size}")
        weights = cell_parameters(self._cells[0], self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
        cell = filled(self._cells[0], weights)
        if hx is None:
            state = cell.initial_state(x.shape[0])
        else:
            fields = (hx,) if isinstance(hx, Tensor) else tuple(hx)
            for field in fields:
                if field.dim() not in (1, 2):
                    raise ValueError(f"{name}: Expected hidden to be 1D or 2D, got {field.dim()}D instead")
            state = cell.State(*(field[None] if single else field for field in fields))
            for field in state:
                if field.shape != (x.shape[0], self.hidden_size):
                    expected = (x.shape[0], self.hidden_size)
                    raise RuntimeError(f"{name}: Expected hidden size {expected}, got {list(field.shape)}")
        _, new = cell.step(x, state)
        fields = tuple(field[0] for field in new) if single else tuple(new)
        return fields if len(fields) > 1 else fields[0]


class RNNCell(_Step, nn.RNNCell):
    """One step of `throughtime.cells.Elman`, in place of `torch.nn.RNNCell`."""

    def _cell(self) -> Cell:
        return cells.Elman(self.input_size, self.hidden_size, activation=self.nonlinearity)


class LSTMCell(_Step, nn.LSTMCell):
    """One step of `throughtime.cells.LSTM`, in place of `torch.nn.LSTMCell`."""

    def _cell(self) -> Cell:
        return cells.LSTM(self.input_size, self.hidden_size)


class GRUCell(_Step, nn.GRUCell):
    """One step of `throughtime.cells.GRU`, in place of `torch.nn.GRUCell`.

    >>> step, h = GRUCell(3, 5), torch.zeros(2, 5)
    >>> for x in torch.randn(7, 2, 3):
    ...     h = step(x, h)
    >>> h.shape
    torch.Size([2, 5])
    """

    def _cell(self) -> Cell:
        return cells.GRU(self.input_size, self.hidden_size)


def cell_parameters(
    cell: Cell, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor | None, bias_hh: Tensor | None
) -> dict[str, Tensor]:
    """torch's parameters under the names that the cell gives them.

    Where the cell has one bias, torch's two are added up. The GRU has both: its reset gate multiplies the second.
    """
    parameters = {"input.weight": weight_ih, "recurrent.weight": weight_hh}
    if bias_ih is not None and bias_hh is not None:
        if any(name == "recurrent.bias" for name, _ in cell.named_parameters()):
            parameters |= {"input.bias": bias_ih, "recurrent.bias": bias_hh}
        else:
            parameters["input.bias"] = bias_ih + bias_hh
    return parameters


def filled(module: Any, parameters: dict[str, Tensor], path: str = "") -> Any:
    """A copy of the module that holds these tensors for its parameters.

    `torch.func.functional_call` swaps them within the module itself, so that two threads could not share it.
    """
    copy = object.__new__(type(module))
    copy.__dict__.update(module.__dict__)
    copy.__dict__["stands_for"] = module  # what the engine knows of the one holds for the other
    copy.__dict__["_parameters"] = {
        name: None if own is None else parameters[path + name] for name, own in module._parameters.items()
    }
    copy.__dict__["_modules"] = {
        name: filled(child, parameters, f"{path}{name}.") for name, child in module._modules.items()
    }
    return copy


def without_bias(cell: Cell) -> None:
    """Takes the biases off the cell's products."""
    for module in cell.modules():
        if isinstance(module, nn.Linear):
            module.register_parameter("bias", None)


def pack_as(packed: PackedSequence, y: Tensor) -> PackedSequence:
    """``y`` (B, T, O) packed as ``packed`` is."""
    lengths = (packed.batch_sizes[:, None] > torch.arange(y.shape[0], device="cpu")).sum(0)  # sorted, the longest first
    if packed.sorted_indices is not None:
        y = y.index_select(0, packed.sorted_indices)
    return packed._replace(data=pack_padded_sequence(y, lengths, batch_first=True).data)
