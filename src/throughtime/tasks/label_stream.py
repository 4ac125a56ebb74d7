"""Labels for words as they come."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from throughtime.errors import UserError
from throughtime.tasks.label import LabelModel
from throughtime.tasks.reading import tokens_of


class LabelledWord(NamedTuple):
    """A word, its label and how probable that is."""

    word: str
    label: str
    probability: float


class LabelStream:
    """Labels each word once ``look_ahead`` more have come; memory and time for a word do not grow with the stream.

    The state of the forward direction is carried on; a backward direction begins anew at the last word that has come.
    In a network of one layer, the scores of a word are those of the text up to its look-ahead; in several layers, upper
    ones go on from what lower ones said of earlier words when these were labelled. A CRF goes on from the label it
    gave last, and so keeps to its scheme.

    Args:
        model: what labels.
        look_ahead: words to wait for: at least what the model's windows and pairs of words need, which is the default
            for a model that reads forwards; four more for one that reads from both ends.

    Raises:
        UserError: the look-ahead is less than what the model needs; or it needs further columns beside the words, or
            whole sentences.
    """

    def __init__(self, model: LabelModel, look_ahead: int | None = None) -> None:
        settings = model.settings
        if settings.has_extras:
            raise UserError("the model reads further columns beside the words, which a stream of words does not have")
        if settings.self_attention:
            raise UserError("the model's self-attention reads whole sentences; predict without a stream")
        self._beside = settings.window // 2
        needed = self._beside + settings.pairs
        if look_ahead is None:
            look_ahead = needed + (4 if settings.bidirectional else 0)
        if look_ahead < needed:
            raise UserError(f"the model's windows need a look-ahead of {needed} words; {look_ahead} is too little")
        self.look_ahead = look_ahead
        self._model = model
        self._past: list[str] = []  # words before the next one to label, as many as a window sees
        self._waiting: list[str] = []
        self._state: Any = None
        self._label: int | None = None

    def push(self, word: str) -> list[LabelledWord]:
        """Takes a word; gives the word that can be labelled now, or none."""
        self._waiting.append(word)
        return [self._next(goes_on=True)] if len(self._waiting) > self.look_ahead else []

    def close(self) -> list[LabelledWord]:
        """The words that still wait, labelled; the stream can begin anew."""
        found = []
        while self._waiting:
            found.append(self._next(goes_on=False))
        self._past, self._state, self._label = [], None, None
        return found

    @torch.inference_mode()
    def _next(self, *, goes_on: bool) -> LabelledWord:
        model, network = self._model, self._model.network
        network.eval()
        context = [*self._past, *self._waiting]
        tokens = tokens_of(model.index, [context], network.output.weight.device)
        x = network.features.spread(network.features.embed(tokens), tokens.lengths)[:, len(self._past) :]
        y = self._read(x)
        scores = network.output(y)  # (1, K, L)
        lengths = torch.tensor([scores.shape[1]], device=scores.device)
        label, chance = self._judged(scores, lengths, goes_on)
        word = self._waiting.pop(0)
        self._past = [*self._past, word][-self._beside :] if self._beside else []
        self._label = label
        return LabelledWord(word, model.labels[label], chance)

    def _judged(self, scores: Tensor, lengths: Tensor, goes_on: bool) -> tuple[int, float]:
        crf = self._model.network.crf
        if crf is None:
            chance, label = scores[0, 0].softmax(-1).max(-1)
            return int(label), float(chance)
        start = None if self._label is None else crf.following(self._label)
        best = crf.decode(scores, lengths, start, goes_on=goes_on)[0][0]
        return best, float(crf.marginals(scores, lengths, start, goes_on=goes_on)[0, 0, best])

    def _read(self, x: Tensor) -> Tensor:
        """Outputs of the words that wait; the state moves on by the first of them."""
        recurrent = self._model.network.recurrent
        if not recurrent.bidirectional:
            y, _ = recurrent(x, self._state)
            _, self._state = recurrent(x[:, :1], self._state)
            return y
        state, after = self._state, []
        for k in range(recurrent.num_layers):
            before = None if state is None else state[k]
            x, final = _both(recurrent, k, x, before)
            after.append(final)
        self._state = tuple(after)
        return x


def _both(recurrent: Any, k: int, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    """Layer k in both directions, forwards from a state: its output, and the forward state after the first step."""
    from throughtime.engine import unroll
    from throughtime.layers.recurrent import MERGES

    forwards, _ = unroll(recurrent.forward_cells[k], x, state)
    backwards, _ = unroll(recurrent.backward_cells[k], x, reverse=True)
    _, after = unroll(recurrent.forward_cells[k], x[:, :1], state)
    return MERGES[recurrent.merge](forwards, backwards), after
