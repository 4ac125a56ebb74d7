"""Layers and directions: `Recurrent` against the same cells put together by hand."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import throughtime as tt
from cases import CELLS, Leaky, fields_of
from throughtime.cells import GRU, LSTM, CoupledLSTM, MinGRU, ProjectedLSTM
from throughtime.layers.recurrent import MERGES

close = torch.testing.assert_close
LENGTHS = [6, 0, 3, 1]


def network(*arguments, **options):
    return tt.Recurrent(*arguments, **options).double()


def inputs(batch=4, steps=6, features=3):
    return torch.randn(batch, steps, features, dtype=torch.float64)


def random_like(state):
    """A random state of the same layout."""
    if isinstance(state, torch.Tensor):
        return torch.randn_like(state)
    parts = [random_like(part) for part in state]
    return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)


def merged_by_hand(forward, backward, merge):
    return {
        "concat": lambda: torch.cat([forward, backward], -1),
        "sum": lambda: forward + backward,
        "mean": lambda: 0.5 * forward + 0.5 * backward,
        "product": lambda: forward * backward,
        "max": lambda: torch.where(forward > backward, forward, backward),
    }[merge]()


@pytest.mark.parametrize("cell", [LSTM, GRU, ProjectedLSTM, MinGRU, Leaky])
@pytest.mark.parametrize("merge", [None, *MERGES])
def test_layers_and_directions_by_hand(cell, merge):
    sizes = [5, 4, 6]
    options = {} if merge is None else {"bidirectional": True, "merge": merge}
    net = network(cell, 3, sizes, 3, **options)
    x, state = inputs(), random_like(net.initial_state(4))
    resets = torch.rand(4, 6) < 0.3
    y, final, states = net(x, state, lengths=LENGTHS, resets=resets, return_states=True)
    for k in range(3):
        assert net.forward_cells[k].hidden_size == sizes[k]
        given = {"lengths": LENGTHS, "resets": resets, "return_states": True}
        if merge is None:
            x, final1, states1 = tt.unroll(net.forward_cells[k], x, state[k], **given)
        else:
            one = tt.unroll(net.forward_cells[k], x, state[k][0], **given)
            other = tt.unroll(net.backward_cells[k], x, state[k][1], reverse=True, **given)
            x = merged_by_hand(one[0], other[0], merge)
            final1, states1 = (one[1], other[1]), (one[2], other[2])
        close(fields_of(final[k]), fields_of(final1))
        close(fields_of(states[k]), fields_of(states1))
    close(y, x)
    assert y.shape[-1] == net.output_size


@given(
    st.integers(0, 4), st.integers(0, 6), st.integers(1, 3), st.booleans(), st.sampled_from(sorted(MERGES)), st.data()
)
def test_a_ragged_batch_is_its_sequences_alone(batch, steps, layers, bidirectional, merge, data):
    lengths = data.draw(st.lists(st.integers(0, steps), min_size=batch, max_size=batch))
    net = network(CoupledLSTM, 3, 5, layers, bidirectional, merge=merge)
    x = inputs(batch, steps)
    y, final = net(x, lengths=lengths)
    assert y.shape == (batch, steps, net.output_size)
    for b, length in enumerate(lengths):
        y1, final1 = net(x[b : b + 1, :length])
        close(y[b : b + 1, :length], y1)
        assert (y[b, length:] == 0).all()
        close([field[b : b + 1] for field in fields_of(final)], fields_of(final1))


@pytest.mark.parametrize("name", [name for name in CELLS if name != "lstm-residual"])
def test_step_by_step_gives_what_the_whole_gives(name):
    net = network(CELLS[name], 3, 5, 2).eval()
    x, state = inputs(), random_like(net.initial_state(4))
    for start in (state, None):
        y, final = net(x, start)
        now = start
        for t in range(6):
            y_t, now = net.step(x[:, t], now)
            close(y_t, y[:, t])
        close(fields_of(now), fields_of(final))
    y1, middle = net(x[:, :4], state)
    y2, final2 = net(x[:, 4:], middle)
    close((torch.cat([y1, y2], 1), fields_of(final2)), (net(x, state)[0], fields_of(net(x, state)[1])))


def test_dropout_acts_between_layers_alone():
    net = network(GRU, 3, 5, 2, dropout=0.5)
    x = inputs()
    torch.manual_seed(3)
    y, final = net(x)
    below, state = tt.unroll(net.forward_cells[0], x)
    torch.manual_seed(3)
    dropped = torch.nn.functional.dropout(below, 0.5)
    assert 0 < (dropped == 0).double().mean() < 1
    close(y, tt.unroll(net.forward_cells[1], dropped)[0])
    close(final[0], state)
    torch.manual_seed(3)
    streamed = net.step(x[:, 0])[0]
    torch.manual_seed(3)
    lower = net.forward_cells[0](x[:, 0])[0]
    close(streamed, net.forward_cells[1](torch.nn.functional.dropout(lower, 0.5))[0])
    net.eval()
    close(net(x)[0], tt.unroll(net.forward_cells[1], below)[0])


def test_options_reach_the_cells():
    net = tt.Recurrent(GRU, 3, 5, 2, True, reset="before", update="write")
    for cell in (*net.forward_cells, *net.backward_cells):
        assert (cell.reset, cell.update) == ("before", "write")
    assert [cell.input_size for cell in net.forward_cells] == [3, 10]
    net = tt.Recurrent(ProjectedLSTM, 3, 8, 2, projection_size=2)
    assert [cell.input_size for cell in net.forward_cells] == [3, 2]
    assert net.output_size == 2


def test_a_learned_initial_state_in_every_layer_and_direction():
    net = network(LSTM, 3, 5, 2, True, learned_initial_state=True)
    starts = [p for name, p in net.named_parameters() if ".initial." in name]
    assert len(starts) == 2 * 2 * 2
    with torch.no_grad():
        for start in starts:
            start.normal_()
    y, _ = net(inputs(), lengths=LENGTHS)
    assert all((g != 0).any() for g in torch.autograd.grad(y.sum(), starts))
    assert net(inputs()[:0], lengths=[])[0].shape == (0, 6, 10)


def test_every_parameter_learns_from_every_layer():
    net = network(LSTM, 3, [5, 4], 2, True, merge="concat")
    net(inputs(), lengths=LENGTHS)[0].sum().backward()
    assert all(p.grad is not None and (p.grad != 0).any() for p in net.parameters())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tt.Recurrent(LSTM, 3, 5, 0), "num_layers must be a whole number of at least 1"),
        (lambda: tt.Recurrent(LSTM, 3, [5, 4], 3), "2 hidden sizes for 3 layers"),
        (lambda: tt.Recurrent(LSTM, 3, 5, merge="add"), "merge must be one of concat"),
        (lambda: tt.Recurrent(LSTM, 3, 5, dropout=1.0), "dropout must be a probability below 1"),
        (lambda: tt.Recurrent(LSTM, 3, 5, bidirectional=True).step(torch.zeros(2, 3)), "cannot stream"),
        (lambda: tt.Recurrent(LSTM, 3, 5, 2)(torch.zeros(2, 4, 3), (None,)), "state of 1 layers .* network of 2"),
        (lambda: tt.Recurrent(LSTM, 3, 5)(torch.zeros(2, 4, 2)), "2 features where the cell takes 3"),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_misspelt_option_is_refused():
    with pytest.raises(TypeError, match="forget_bais"):
        tt.Recurrent(LSTM, 3, 5, forget_bais=1.0)
