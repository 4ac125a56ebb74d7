"""A recurrent network that gives each step a label."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from throughtime.data.spans import may_follow
from throughtime.layers import (
    CRF,
    POOLINGS,
    Foretelling,
    LockedDropout,
    Pooling,
    Recurrent,
    SelfAttention,
    TokenFeatures,
    Tokens,
    Votes,
)

INTENT_POOLINGS = (*POOLINGS, "vote")


class Tagger(nn.Module):
    """Words, layers of a cell, and scores of labels; over them a CRF, and beside them the intent, where asked for.

    >>> from throughtime.cells.catalogue import cell_named
    >>> import torch
    >>> features = TokenFeatures(9, 4)
    >>> tagger = Tagger(features, Recurrent(cell_named("gru"), 4, 5, bidirectional=True), ["O", "B-x"], "bio", crf=True)
    >>> scores, intent = tagger(Tokens(torch.tensor([[3, 1, 0]]), torch.tensor([2])))
    >>> scores.shape, tagger.labels(scores, torch.tensor([2]))[0][0] in (0, 1)
    (torch.Size([1, 3, 2]), True)

    Args:
        features: of the words.
        recurrent: what reads them.
        labels: the names of the labels.
        scheme: they are written in.
        crf: whether labels are judged as a whole sequence; their scheme is then kept to.
        intents: how many there are; 0 for none.
        intent_pooling: what becomes of the steps, for the intent: a name of `layers.POOLINGS`, or "vote", for `Votes`.
        self_attention: features that each word draws from all words, beside those of ``recurrent``; 0 for none.
        directions: of ``recurrent``.
        dropout: of the layers' outputs.
        locked: what is dropped of them is so at all steps.
        foretelling: learns beside the labels what words come; None for labels alone.
        foretelling_weight: of its cost.
    """

    def __init__(
        self,
        features: TokenFeatures,
        recurrent: Recurrent,
        labels: Sequence[str],
        scheme: str,
        *,
        crf: bool = False,
        intents: int = 0,
        intent_pooling: str = "max",
        self_attention: int = 0,
        directions: int = 1,
        dropout: float = 0.0,
        locked: bool = False,
        foretelling: Foretelling | None = None,
        foretelling_weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.features = features
        self.recurrent = recurrent
        self.dropout = LockedDropout(dropout) if locked else nn.Dropout(dropout)
        self.attention = SelfAttention(features.output_size, self_attention) if self_attention else None
        width = recurrent.output_size + self_attention
        self.output = nn.Linear(width, len(labels))
        self.crf = CRF(len(labels), *may_follow(labels, scheme)) if crf else None
        voted, pooled = intents and intent_pooling == "vote", intents and intent_pooling != "vote"
        self.votes = Votes(width, intents) if voted else None
        self.intent = nn.Linear(width, intents) if pooled else None
        self.pooling = Pooling(intent_pooling, width, 1 if self_attention else directions) if pooled else None
        self.foretelling, self.foretelling_weight = foretelling, foretelling_weight

    def forward(self, tokens: Tokens) -> tuple[Tensor, Tensor | None]:
        """``Tokens -> (scores (B, T, L), intents' scores (B, N) or None)``."""
        return self.judge(self.features.embed(tokens), tokens.lengths)

    def judge(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor | None]:
        """The same from embedded words (B, T, .)."""
        y = self._read(x, lengths)
        return self.output(y), self._intent(y, lengths)

    def scores(self, x: Tensor, lengths: Tensor) -> Tensor:
        """The labels' scores (B, T, L) alone."""
        return self.output(self._read(x, lengths))

    def _read(self, x: Tensor, lengths: Tensor) -> Tensor:
        x = self.features.spread(x, lengths)
        y, _ = self.recurrent(x, lengths=lengths)
        if self.attention is not None:
            y = torch.cat([y, self.attention(x, lengths)], dim=-1)
        return self.dropout(y)  # (B, T, O)

    def _intent(self, y: Tensor, lengths: Tensor) -> Tensor | None:
        if self.votes is not None:
            return self.votes(y, lengths)
        if self.intent is None or self.pooling is None:
            return None
        return self.intent(self.pooling(y, lengths)[0])

    def cost(self, tokens: Tokens, labels: Tensor, intents: Tensor | None) -> Tensor:
        """The sum over sentences of -ln p(labels) and of what the intent costs: labels (B, T), intents (B,).

        To it comes what the words cost that are foretold, times its weight.
        """
        y = self._read(self.features.embed(tokens), tokens.lengths)
        scores = self.output(y)
        if self.crf is not None:
            cost = -self.crf.log_likelihood(scores, labels, tokens.lengths).sum()
        else:
            cost = nn.functional.cross_entropy(scores.flatten(0, 1), labels.flatten(), reduction="sum")
        if intents is not None:
            cost = cost + self._intent_cost(y, tokens.lengths, intents)
        if self.foretelling is not None:
            own = y[..., : self.recurrent.output_size]  # attention has seen what is to be foretold
            cost = cost + self.foretelling_weight * self.foretelling(own, tokens.words, tokens.lengths)
        return cost

    def _intent_cost(self, y: Tensor, lengths: Tensor, intents: Tensor) -> Tensor:
        if self.votes is not None:
            return self.votes.cost(y, lengths, intents)
        told = self._intent(y, lengths)
        return y.new_zeros(()) if told is None else nn.functional.cross_entropy(told, intents, reduction="sum")

    def labels(self, scores: Tensor, lengths: Tensor) -> list[list[int]]:
        """The likeliest labels of each sentence."""
        if self.crf is not None:
            return self.crf.decode(scores, lengths)
        best = scores.argmax(-1).tolist()
        return [row[:length] for row, length in zip(best, lengths.tolist(), strict=True)]

    def probabilities(self, scores: Tensor, lengths: Tensor) -> Tensor:
        """(B, T, L): of each label at each step."""
        return scores.softmax(-1) if self.crf is None else self.crf.marginals(scores, lengths)
