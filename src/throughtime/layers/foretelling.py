"""A language model on the side, for networks that learn from few labels."""

from __future__ import annotations

from torch import Tensor, nn

from throughtime.engine.sequence import within

_MOST = 7500  # words that are told apart, the first of the vocabulary, as in the paper


class Foretelling(nn.Module):
    r"""What each direction's outputs foretell of the words that it has not read (Rei 2017).

    .. math:: -\sum_t \ln p(w_{t+a} \mid \overrightarrow{h}_t) - \sum_t \ln p(w_{t-b} \mid \overleftarrow{h}_t), \qquad
        p(w \mid h) = \mathrm{softmax}(V \tanh(U h))

    The words themselves so teach the network, besides their labels. In the paper a = b = 1. Here they are the nearest
    word that a direction has not seen: where a step sees more than its own word (its neighbours in a window, the next
    word in a pair), the one after would be no riddle.

    >>> import torch
    >>> side = Foretelling(9, 4, ahead=2)
    >>> y, words = torch.randn(2, 5, 8), torch.tensor([[3, 1, 4, 1, 5], [2, 7, 0, 0, 0]])
    >>> side(y, words, torch.tensor([5, 2])).shape
    torch.Size([])

    Args:
        words: how many there are, the most frequent first after <unk>, which is 0; of more than 7,500 the rarer ones
            are taken as <unk>.
        size: outputs of one direction.
        bidirectional: whether a second direction's outputs follow those of the first.
        ahead: a, how far the word is that a forward step has not seen.
        behind: b, the same for the other direction.
        hidden: units between the outputs and the words.

    Raises:
        ValueError: ``ahead`` or ``behind`` is below 1.
    """

    def __init__(
        self,
        words: int,
        size: int,
        *,
        bidirectional: bool = True,
        ahead: int = 1,
        behind: int = 1,
        hidden: int = 50,
    ) -> None:
        super().__init__()
        if ahead < 1 or behind < 1:
            raise ValueError(f"a word to foretell is at least 1 step away, not {min(ahead, behind)}")
        self.size, self.ahead, self.behind = size, ahead, behind
        self.words = min(words, _MOST)
        self.forwards = _head(size, hidden, self.words)
        self.backwards = _head(size, hidden, self.words) if bidirectional else None

    def forward(self, y: Tensor, words: Tensor, lengths: Tensor) -> Tensor:
        """``y (B, T, O), words (B, T), lengths (B,) -> ()``: the sum over all words that are foretold."""
        inside = within(lengths, words.shape[1])  # (B, T)
        targets = words.masked_fill(words >= self.words, 0)
        a, b = self.ahead, self.behind
        cost = _cost(self.forwards, y[:, :-a, : self.size], targets[:, a:], inside[:, a:])
        if self.backwards is not None:
            cost = cost + _cost(self.backwards, y[:, b:, self.size :], targets[:, :-b], inside[:, b:])
        return cost

    def extra_repr(self) -> str:
        return f"ahead={self.ahead}, behind={self.behind}"


def _head(size: int, hidden: int, words: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(size, hidden), nn.Tanh(), nn.Linear(hidden, words))


def _cost(head: nn.Sequential, y: Tensor, targets: Tensor, real: Tensor) -> Tensor:
    """Of the real steps alone."""
    return nn.functional.cross_entropy(head(y[real]), targets[real], reduction="sum")
