"""Parts of models that read: pooling, windows, features of words."""

from __future__ import annotations

import pytest
import torch

from throughtime.cells import GRU
from throughtime.layers import (
    POOLINGS,
    CharacterFeatures,
    Foretelling,
    LockedDropout,
    Pooling,
    Recurrent,
    SelfAttention,
    TokenFeatures,
    Tokens,
    Votes,
    Windows,
)


@pytest.mark.parametrize("kind", POOLINGS)
@pytest.mark.parametrize("directions", [1, 2])
def test_a_pooled_row_does_not_depend_on_its_padding(kind: str, directions: int) -> None:
    pooling = Pooling(kind, 6, directions)
    y = torch.randn(4, 5, 6)
    lengths = [5, 2, 0, 1]
    pooled, weights = pooling(y, lengths)
    y[1, 2:], y[2], y[3, 1:] = torch.nan, torch.nan, torch.nan
    again, _ = pooling(y, lengths)
    torch.testing.assert_close(again, pooled)
    for row, length in enumerate(lengths):
        alone, own = pooling(y[row : row + 1, :length], [length])
        torch.testing.assert_close(pooled[row], alone[0])
        if weights is not None and own is not None:
            torch.testing.assert_close(weights[row, :length], own[0])
            assert float(weights[row].detach().sum()) == pytest.approx(1.0 if length else 0.0)
    assert (pooled[2] == 0).all()


def test_last_is_the_final_state_of_both_directions() -> None:
    net = Recurrent(GRU, 3, 4, bidirectional=True)
    x, lengths = torch.randn(3, 6, 3), [6, 1, 4]
    y, state = net(x, lengths=lengths)
    forward, backward = state[0]
    torch.testing.assert_close(Pooling("last", 8, 2)(y, lengths)[0], torch.cat([forward.h, backward.h], dim=1))


def test_mean_and_max_are_those_of_the_real_steps() -> None:
    y = torch.randn(1, 7, 3)
    torch.testing.assert_close(Pooling("mean", 3)(y, [4])[0], y[:, :4].mean(1))
    torch.testing.assert_close(Pooling("max", 3)(y, [4])[0], y[:, :4].amax(1))


def test_pooling_tells_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="pooling must be one of last, mean, max, attention, not 'sum'"):
        Pooling("sum", 3)
    with pytest.raises(ValueError, match="3 features are not those of 2 directions"):
        Pooling("last", 3, 2)


def test_votes_are_the_mean_of_what_the_real_steps_say() -> None:
    votes = Votes(6, 4).double()
    y, lengths, classes = (
        torch.randn(4, 5, 6, dtype=torch.float64),
        torch.tensor([5, 2, 0, 1]),
        torch.tensor([3, 0, 1, 2]),
    )
    y[1, 2:], y[2], y[3, 1:] = torch.nan, torch.nan, torch.nan
    found, cost = votes(y, lengths), votes.cost(y, lengths, classes)
    wanted = torch.zeros((), dtype=torch.float64)
    for row, length in enumerate(lengths.tolist()):
        said = votes.output(y[row, :length]) if length else votes.output.bias[None]
        torch.testing.assert_close(found[row].exp(), said.softmax(-1).mean(0))
        wanted = wanted + torch.nn.functional.cross_entropy(said, classes[row].expand(len(said)))
    torch.testing.assert_close(cost, wanted)
    torch.testing.assert_close(votes(y[:, :0], lengths * 0).exp(), votes.output.bias.softmax(0).expand(4, 4))


def test_the_gradients_of_votes_are_those_of_finite_differences() -> None:
    votes = Votes(3, 4).double()
    y, lengths = torch.randn(3, 4, 3, dtype=torch.float64, requires_grad=True), torch.tensor([4, 0, 2])
    assert torch.autograd.gradcheck(lambda y: votes(y, lengths), (y,))
    assert torch.autograd.gradcheck(lambda y: votes.cost(y, lengths, torch.tensor([1, 0, 3])), (y,))


def test_attention_is_over_the_real_steps_as_the_equation_has_it() -> None:
    attention = SelfAttention(3, 5).double()
    x, lengths = torch.randn(4, 6, 3, dtype=torch.float64), torch.tensor([6, 2, 0, 1])
    x[1, 2:], x[2], x[3, 1:] = torch.nan, torch.nan, torch.nan
    found = attention(x, lengths)
    for row, length in enumerate(lengths.tolist()):
        q, k, v = (made(x[row, :length]) for made in (attention.query, attention.key, attention.value))
        torch.testing.assert_close(found[row, :length], (q @ k.T / 5**0.5).softmax(-1) @ v)
    assert not found[2].any()
    assert attention(x[:, :0], lengths * 0).shape == (4, 0, 5)


def test_the_gradients_of_attention_are_those_of_finite_differences() -> None:
    attention = SelfAttention(3, 4).double()
    x, lengths = torch.randn(3, 4, 3, dtype=torch.float64, requires_grad=True), torch.tensor([4, 0, 2])
    assert torch.autograd.gradcheck(lambda x: attention(x, lengths), (x,))


def test_windows_hold_the_neighbours_within_the_length() -> None:
    x = torch.randn(2, 6, 3)
    found = Windows(5)(x, torch.tensor([6, 3]))
    assert found.shape == (2, 6, 15)
    for row, length in enumerate((6, 3)):
        for t in range(length):
            for k, at in enumerate(range(t - 2, t + 3)):
                wanted = x[row, at] if 0 <= at < length else torch.zeros(3)
                assert torch.equal(found[row, t, 3 * k : 3 * k + 3], wanted)
    assert Windows(1)(x, torch.tensor([6, 3])) is x
    with pytest.raises(ValueError, match="odd"):
        Windows(4)


def test_spelling_is_read_from_both_ends() -> None:
    features = CharacterFeatures(9, 4, 5, "gru")
    letters = torch.tensor([[3, 1, 4, 0], [1, 5, 0, 0], [2, 6, 5, 3]])
    counts = torch.tensor([3, 2, 4])
    found = features(letters, counts)
    letters[0, 3] = 8  # padding is not read
    assert torch.equal(features(letters, counts), found)
    alone = features(letters[1:2, :2], counts[1:2])
    torch.testing.assert_close(found[1], alone[0])
    first, last = letters.clone(), letters.clone()
    first[0, 0], last[0, 2] = 7, 7
    for changed in (first, last):  # each half sees the whole word
        other = features(changed, counts)
        assert (other[0, :5] != found[0, :5]).any()
        assert (other[0, 5:] != found[0, 5:]).any()


def test_features_of_words_side_by_side() -> None:
    features = TokenFeatures(9, 4, pairs=7, letters=6, letter_embedding=3, letter_hidden=5, window=3)
    tokens = Tokens(
        torch.tensor([[1, 2, 0], [3, 0, 0]]),
        torch.tensor([2, 1]),
        torch.tensor([[6, 5, 0], [1, 0, 0]]),
        torch.tensor([[1, 2], [3, 0], [4, 5]]),
        torch.tensor([2, 1, 2]),
        torch.tensor([[2, 0, 0], [1, 0, 0]]),
    )
    x = features.embed(tokens)
    assert features.letters is not None
    assert features.pairs is not None
    assert tokens.letters is not None
    assert tokens.letter_counts is not None
    spelled = features.letters(tokens.letters, tokens.letter_counts)
    torch.testing.assert_close(x[0, 1], torch.cat([features.words.weight[2], features.pairs.weight[5], spelled[0]]))
    assert features(tokens).shape == (2, 3, 3 * 18)
    assert features.output_size == 54


def test_further_columns_stand_beside_the_words() -> None:
    features = TokenFeatures(9, 4, extras=[3, 6], extra_embedding=5)
    extras = torch.tensor([[[2, 5], [0, 1]]])
    tokens = Tokens(torch.tensor([[1, 2]]), torch.tensor([2]), extras=extras)
    assert features.output_size == 14
    weights = [features.words.weight, *(extra.weight for extra in features.extras)]
    torch.testing.assert_close(features(tokens)[0, 0], torch.cat([weights[0][1], weights[1][2], weights[2][5]]))


def test_pretrained_vectors_take_their_rows() -> None:
    features = TokenFeatures(5, 3)
    vectors = torch.randn(2, 3)
    before = features.words.weight.detach().clone()
    features.set_vectors(torch.tensor([4, 1]), vectors, frozen=True)
    assert torch.equal(features.words.weight[[4, 1]], vectors)
    assert torch.equal(features.words.weight[[0, 2, 3]], before[[0, 2, 3]])
    assert not features.words.weight.requires_grad
    with pytest.raises(ValueError, match="vectors of 2 numbers for an embedding of 3"):
        features.set_vectors(torch.tensor([1]), torch.zeros(1, 2), frozen=False)


def test_what_locked_dropout_drops_is_dropped_at_all_steps() -> None:
    torch.manual_seed(1)
    y = torch.rand(40, 7, 50) + 1
    dropped = LockedDropout(0.3)(y)
    factor = (dropped / y).round(decimals=3)
    assert torch.equal(factor, factor[:, :1].expand_as(factor))
    assert factor.unique().tolist() == pytest.approx([0, 1 / 0.7], abs=1e-3)
    assert float((factor == 0).float().mean()) == pytest.approx(0.3, abs=0.05)
    assert not torch.equal(factor[0], factor[1])
    features = TokenFeatures(9, 4, dropout=0.5, locked=True)
    assert isinstance(features.dropout, LockedDropout)
    tokens = Tokens(torch.tensor([[1, 1, 1, 1]]), torch.tensor([4]))
    x = features(tokens)
    assert torch.equal(x, x[:, :1].expand_as(x))
    assert torch.equal(features.eval()(tokens), features.embed(tokens))


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("ahead", "behind"), [(1, 1), (3, 2)])
def test_what_is_foretold_costs_what_it_costs_word_by_word(bidirectional: bool, ahead: int, behind: int) -> None:
    side = Foretelling(7, 4, bidirectional=bidirectional, ahead=ahead, behind=behind, hidden=3).double()
    y = torch.randn(4, 6, 8 if bidirectional else 4, dtype=torch.float64)
    words, lengths = torch.randint(0, 7, (4, 6)), torch.tensor([6, 2, 0, 4])
    cost = torch.zeros((), dtype=torch.float64)
    for row, length in enumerate(lengths.tolist()):
        for t in range(length):
            if t + ahead < length:
                cost = cost - side.forwards(y[row, t, :4]).log_softmax(-1)[words[row, t + ahead]]
            if side.backwards is not None and t - behind >= 0:
                cost = cost - side.backwards(y[row, t, 4:]).log_softmax(-1)[words[row, t - behind]]
    torch.testing.assert_close(side(y, words, lengths), cost)
    beyond = torch.arange(6) >= lengths[:, None]
    torch.testing.assert_close(side(y.masked_fill(beyond[..., None], torch.nan), words, lengths), cost)
    assert float(side(y[:, :0], words[:, :0], torch.zeros(4)).detach()) == 0


def test_rarer_words_than_can_be_told_apart_are_foretold_as_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("throughtime.layers.foretelling._MOST", 5)
    side, y, lengths = Foretelling(9, 4), torch.randn(1, 3, 8), torch.tensor([3])
    assert side.forwards[-1].out_features == 5
    found = [side(y, torch.tensor([[1, word, 2]]), lengths) for word in (0, 5, 8, 4)]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[3])
    with pytest.raises(ValueError, match="at least 1 step away, not 0"):
        Foretelling(9, 4, behind=0)
