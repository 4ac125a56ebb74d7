"""How fast is fast enough: the least over the sizes, and the geometric mean, of each row of the summary."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Bar:
    """What a row has to reach; no mean where only each size counts."""

    least: float
    mean: float | None = None

    def met(self, least: float, mean: float) -> bool:
        """
        >>> Bar(1.0, 1.4).met(1.1, 1.3)
        False
        """
        return least >= self.least and (self.mean is None or mean >= self.mean)


FASTEST, PEAK = "fastest of torch and JAX", "FMA peak"  # peers that are found from other rows
OURS, TORCHS = "{} here, for the same arithmetic", "{}, for the same arithmetic"  # built-in cells beside one's own

# by run and peer, or by run and cell
BARS = {
    ("training", "nn.LSTM"): Bar(1.0, 1.4),
    ("training", "nn.GRU"): Bar(1.5, 4.0),
    ("training", "nn.RNN"): Bar(1.3, 3.0),
    ("training", FASTEST): Bar(1.0, 1.4),
    ("training", PEAK): Bar(0.70, 0.80),
    ("forward", "nn.LSTM"): Bar(1.0, 1.2),
    ("forward", "nn.GRU"): Bar(1.5, 2.5),
    ("forward", "nn.RNN"): Bar(1.3, 2.5),
    **{(what, "loop"): Bar(1.4, 3.0) for what in ("training", "forward")},
    **{
        (what, peer): Bar(0.8, 0.9)
        for what in ("training", "forward")
        for ours, torchs in (("LSTM", "nn.LSTM"), ("GRU", "nn.GRU"), ("Elman", "nn.RNN"))
        for peer in (OURS.format(ours), TORCHS.format(torchs))
    },
    ("bidirectional", "nn.LSTM"): Bar(1.0, 1.4),
    ("ragged", "nn.LSTM"): Bar(1.5),
    ("language", "LSTM"): Bar(1.3),
    ("writing", "LSTM, 1x128"): Bar(4.0),
    ("writing", "LSTM, 2x256"): Bar(2.0),
    ("writing", "LSTM, 2x512"): Bar(1.0),
    ("writing", "LSTM, 2x512, bfloat16"): Bar(1.7),
    ("streaming", "nn.LSTM, T = 1"): Bar(3.0),
    ("streaming", "nn.LSTMCell"): Bar(1.5),
    ("memory", "nn.LSTM"): Bar(1.0),
    ("compile", "2 s, first"): Bar(1.0),
    ("compile", "0.1 s, from disk"): Bar(1.0),
    ("growth", "T = 100"): Bar(1 / 1.1),
}


def bar_of(what: str, cell: str, peer: str) -> Bar | None:
    """The bar of a row, or None."""
    return BARS.get((what, peer)) or BARS.get((what, cell))
