"""`throughtime.nn` against torch.nn, which was written elsewhere: float64, equal to 1e-10."""

import copy
import io
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import throughtime as tt

KINDS = ("RNN", "LSTM", "GRU")
every_kind = pytest.mark.parametrize("kind", KINDS)


def close(mine, theirs):
    torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


def twins(kind, *sizes, seed=0, **options):
    """Ours and torch's, each made from the same seed."""
    options = {"dtype": torch.float64} | options
    made, after = [], []
    for library in (tt.nn, torch.nn):
        torch.manual_seed(seed)
        made.append(getattr(library, kind)(*sizes, **options))
        after.append(torch.rand(1))
    assert after[0] == after[1]  # what is drawn later is the same, too
    return made


def random_hx(module, batch):
    rows = module.num_layers * (1 + module.bidirectional)
    sizes = [module.proj_size or module.hidden_size, module.hidden_size]
    lead = (rows,) if batch is None else (rows, batch)
    fields = [torch.randn(*lead, size, dtype=torch.float64) for size in sizes]
    return tuple(fields) if isinstance(module, tt.nn.LSTM) else fields[0]


def leaves(hx):
    return [] if hx is None else [hx] if isinstance(hx, torch.Tensor) else list(hx)


def run(module, x, hx, lengths, enforce_sorted, seed=3):
    """Output and states as a list of tensors, and the gradients of a random sum of them."""
    x = x.clone().requires_grad_()
    starts = [field.clone().requires_grad_() for field in leaves(hx)]
    given = None if hx is None else starts[0] if isinstance(hx, torch.Tensor) else tuple(starts)
    torch.manual_seed(seed)  # what is drawn from here on is dropout
    if lengths is None:
        output, state = module(x, given)
        outputs = [output, *leaves(state)]
    else:
        packed = pack_padded_sequence(x, lengths, batch_first=module.batch_first, enforce_sorted=enforce_sorted)
        output, state = module(packed, given)
        assert isinstance(output, PackedSequence)
        outputs = [output.data, *leaves(state), output.batch_sizes]
        outputs += [index for index in (output.sorted_indices, output.unsorted_indices) if index is not None]
    generator = torch.Generator().manual_seed(1)
    loss = sum(
        (field * torch.randn(field.shape, generator=generator, dtype=torch.float64)).sum()
        for field in outputs
        if field.is_floating_point()
    )
    return outputs, torch.autograd.grad(loss, [x, *starts, *module.parameters()])


@st.composite
def modules(draw):
    kind = draw(st.sampled_from(KINDS))
    hidden = draw(st.integers(1, 5))
    options = {
        "num_layers": draw(st.integers(1, 3)),
        "bias": draw(st.booleans()),
        "batch_first": draw(st.booleans()),
        "bidirectional": draw(st.booleans()),
    }
    if options["num_layers"] > 1:
        options["dropout"] = draw(st.sampled_from([0.0, 0.4, 1.0]))
    if kind == "LSTM":
        options["proj_size"] = draw(st.integers(0, hidden - 1))
    if kind == "RNN":
        options["nonlinearity"] = draw(st.sampled_from(["tanh", "relu"]))
    return kind, (draw(st.integers(1, 4)), hidden), options


@st.composite
def batches(draw):
    layout = draw(st.sampled_from(["padded", "single", "packed", "packed unsorted"]))
    steps = draw(st.integers(1, 6))
    batch = None if layout == "single" else draw(st.integers(1, 4))
    lengths = None
    if layout.startswith("packed"):
        lengths = draw(st.lists(st.integers(1, steps), min_size=batch, max_size=batch))
        if layout == "packed":
            lengths.sort(reverse=True)
    return batch, steps, lengths, layout == "packed"


@settings(max_examples=200)
@given(modules(), batches(), st.booleans(), st.booleans(), st.integers(0, 2**32))
def test_outputs_states_and_gradients_are_torchs(module, batch_of, with_state, training, seed):
    kind, sizes, options = module
    batch, steps, lengths, enforce_sorted = batch_of
    mine, theirs = twins(kind, *sizes, seed=seed, **options)
    mine.train(training)
    theirs.train(training)
    if batch is None:
        x = torch.randn(steps, sizes[0], dtype=torch.float64)
    else:
        x = torch.randn(*((batch, steps) if mine.batch_first else (steps, batch)), sizes[0], dtype=torch.float64)
    hx = random_hx(mine, batch) if with_state else None
    outputs, gradients = run(mine, x, hx, lengths, enforce_sorted)
    outputs1, gradients1 = run(theirs, x, hx, lengths, enforce_sorted)
    for one, other in zip(outputs, outputs1, strict=True):
        assert one.is_contiguous() or not other.is_contiguous()  # view() works wherever it does on torch's
    close(outputs, outputs1)
    close(gradients, gradients1)


@given(modules(), st.integers(0, 2**32))
def test_the_same_seed_gives_the_same_parameters(module, seed):
    kind, sizes, options = module
    mine, theirs = twins(kind, *sizes, seed=seed, **options)
    state, state1 = mine.state_dict(), theirs.state_dict()
    assert list(state) == list(state1)
    for name, value in state.items():
        assert torch.equal(value, state1[name]), name
    assert repr(mine) == repr(theirs)
    assert all(isinstance(value, torch.nn.Parameter) for value in mine.parameters())


@given(modules())
def test_state_dicts_load_either_way(module):
    kind, sizes, options = module
    mine, theirs = twins(kind, *sizes, **options)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_()
    mine.load_state_dict(theirs.state_dict())
    x = torch.randn(4, 3, sizes[0], dtype=torch.float64)
    close(mine.eval()(x)[0], theirs.eval()(x)[0])
    with torch.no_grad():
        for parameter in mine.parameters():
            parameter.normal_()
    theirs.load_state_dict(mine.state_dict())
    close(mine(x)[0], theirs(x)[0])


def test_arguments_by_position():
    mine, theirs = (
        tt.nn.RNN(3, 5, 2, "relu", False, True, 0.5, True),
        torch.nn.RNN(3, 5, 2, "relu", False, True, 0.5, True),
    )
    assert repr(mine) == repr(theirs)
    assert mine.nonlinearity == theirs.nonlinearity
    arguments = (3, 5, 2, False, True, 0.5, True)
    assert repr(tt.nn.GRU(*arguments)) == repr(torch.nn.GRU(*arguments))
    assert repr(tt.nn.LSTM(*arguments, 2)) == repr(torch.nn.LSTM(*arguments, 2))
    assert tt.nn.LSTM(*arguments, 2, "meta", torch.float64).weight_hr_l1_reverse.is_meta


# single steps


@settings(max_examples=100)
@given(
    st.sampled_from(KINDS), st.booleans(), st.booleans(), st.booleans(), st.booleans(), st.integers(0, 2**32), st.data()
)
def test_single_steps_are_torchs(kind, bias, with_state, single, relu, seed, data):
    options = {"nonlinearity": "relu"} if relu and kind == "RNN" else {}
    mine, theirs = twins(kind + "Cell", 3, 5, seed=seed, bias=bias, **options)
    assert mine.state_dict().keys() == theirs.state_dict().keys()
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in mine.state_dict().items())
    assert repr(mine) == repr(theirs)
    lead = () if single else (data.draw(st.integers(1, 4)),)
    x = torch.randn(*lead, 3, dtype=torch.float64, requires_grad=True)
    hx = tuple(torch.randn(*lead, 5, dtype=torch.float64, requires_grad=True) for _ in range(1 + (kind == "LSTM")))
    given = None if not with_state else hx if kind == "LSTM" else hx[0]
    results = [leaves(module(x, given)) for module in (mine, theirs)]
    close(*results)
    weights = [torch.randn_like(field) for field in results[0]]
    gradients = [
        torch.autograd.grad(
            sum((weight * field).sum() for weight, field in zip(weights, fields, strict=True)),
            [x, *(hx if with_state else ()), *module.parameters()],
        )
        for module, fields in zip((mine, theirs), results, strict=True)
    ]
    close(*gradients)


@every_kind
@pytest.mark.parametrize(
    ("x", "h"), [((2, 4), None), ((1, 1, 3), None), ((2, 3), (1, 5)), ((2, 3), (2, 4)), ((2, 3), (1, 2, 5))]
)
def test_single_steps_refuse_what_torchs_refuse(kind, x, h):
    mine, theirs = twins(kind + "Cell", 3, 5)
    x = torch.zeros(x, dtype=torch.float64)
    hx = None if h is None else torch.zeros(h, dtype=torch.float64)
    hx = (hx, hx) if kind == "LSTM" and hx is not None else hx
    with pytest.raises((ValueError, RuntimeError)) as raised:
        theirs(x, hx)
    with pytest.raises(type(raised.value)):
        mine(x, hx)


# dropout


@every_kind
def test_dropout_acts_between_layers_alone(kind):
    mine, _ = twins(kind, 3, 5, 2, dropout=1.0)
    x = torch.randn(6, 4, 3, dtype=torch.float64)
    y, state = mine(x)
    top, _ = twins(kind, 5, 5)
    names = [name for name, _ in mine.named_parameters() if "_l1" in name]
    top.load_state_dict({name.replace("_l1", "_l0"): getattr(mine, name) for name in names})
    y1, _ = top(torch.zeros(6, 4, 5, dtype=torch.float64))
    close(y, y1)  # the upper layer saw zeros, and its own output is whole
    _, whole = mine.eval()(x)
    for field, field1 in zip(leaves(state), leaves(whole), strict=True):
        close(field[0], field1[0])  # the state of the lower layer is not dropped


def test_dropout_in_a_single_layer_is_warned_of_as_by_torch():
    with pytest.warns(UserWarning, match="num_layers greater than 1"):
        tt.nn.LSTM(3, 5, dropout=0.5)


# lengths


@every_kind
@pytest.mark.parametrize("bidirectional", [False, True])
def test_lengths_give_what_packing_gives(kind, bidirectional):
    mine, theirs = twins(kind, 3, 5, 2, bidirectional=bidirectional)
    x, lengths = torch.randn(6, 4, 3, dtype=torch.float64), [2, 6, 1, 4]
    hx = random_hx(mine, 4)
    y, state = mine(
        x.where(torch.arange(6)[:, None, None] < torch.tensor(lengths)[:, None], torch.nan), hx, lengths=lengths
    )
    packed, state1 = theirs(pack_padded_sequence(x, lengths, enforce_sorted=False), hx)
    close(y, pad_packed_sequence(packed)[0])
    close(leaves(state), leaves(state1))


@every_kind
def test_a_sequence_of_length_zero_keeps_its_state(kind):
    mine, _ = twins(kind, 3, 5, 2, batch_first=True, bidirectional=True)
    x, hx = torch.randn(3, 4, 3, dtype=torch.float64), None
    hx = random_hx(mine, 3)
    y, state = mine(x, hx, lengths=[4, 0, 2])
    assert (y[1] == 0).all()
    for field, field1 in zip(leaves(state), leaves(hx), strict=True):
        close(field[:, 1], field1[:, 1])
    y, state = mine(x[:, :0], hx)
    assert y.shape == (3, 0, 10)
    close(leaves(state), leaves(hx))


def test_lengths_are_refused_where_there_is_no_padding():
    mine, _ = twins("GRU", 3, 5)
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    for wrong in (x[:, 0], pack_padded_sequence(x, [4, 2])):
        with pytest.raises(ValueError, match="padded batch"):
            mine(wrong, lengths=[4, 2])


# errors


@every_kind
@pytest.mark.parametrize(
    "options",
    [
        {"input_size": 0},
        {"hidden_size": 0},
        {"num_layers": 0},
        {"hidden_size": 2.0},
        {"input_size": "3"},
        {"dropout": 1.5},
        {"dropout": True},
        {"bias": 1},
        {"batch_first": None},
        {"proj_size": 5},
        {"proj_size": -1},
        {"nonlinearity": "sigmoid"},
    ],
)
def test_what_torch_refuses_to_make_is_refused(kind, options):
    if ("proj_size" in options and kind != "LSTM") or ("nonlinearity" in options and kind != "RNN"):
        return
    arguments = {"input_size": 3, "hidden_size": 5} | options
    with pytest.raises((ValueError, TypeError)) as theirs:
        getattr(torch.nn, kind)(**arguments)
    with pytest.raises(type(theirs.value)) as mine:
        getattr(tt.nn, kind)(**arguments)
    assert str(mine.value) == str(theirs.value)


@every_kind
@pytest.mark.parametrize("wrong", ["features", "dimensions", "dtype", "rows", "batch", "hidden", "state dimensions"])
@pytest.mark.parametrize("single", [False, True])
def test_what_torch_refuses_to_run_is_refused(kind, wrong, single):
    mine, theirs = twins(kind, 3, 5, 2)
    batch = None if single else 4
    x = torch.randn(*((6,) if single else (6, 4)), 3, dtype=torch.float64)
    hx = random_hx(mine, batch)
    change = {
        "rows": lambda field: field[:1],
        "batch": lambda field: field if single else field[:, :3],
        "hidden": lambda field: field[..., :4],
        "state dimensions": lambda field: field[0],
    }.get(wrong)
    if change is not None:
        if wrong == "batch" and single:
            return
        hx = change(hx) if isinstance(hx, torch.Tensor) else tuple(map(change, hx))
    x = {"features": x[..., :2], "dimensions": x[None, None], "dtype": x.float()}.get(wrong, x)
    with pytest.raises((ValueError, RuntimeError)) as theirs_raised:
        theirs(x, hx)
    with pytest.raises(type(theirs_raised.value)):
        mine(x, hx)


@every_kind
def test_a_state_of_the_wrong_batch_is_refused_with_packed_input(kind):
    mine, _ = twins(kind, 3, 5)
    packed = pack_padded_sequence(torch.randn(6, 4, 3, dtype=torch.float64), [6, 4, 2, 1])
    with pytest.raises(RuntimeError, match=r"Expected hidden h size \(1, 4, 5\), got \[1, 3, 5\]"):
        mine(packed, random_hx(mine, 3))


def test_a_state_of_too_few_parts_is_refused():
    mine, _ = twins("LSTM", 3, 5)
    with pytest.raises(ValueError, match=r"\(h, c\), not of 1"):
        mine(torch.randn(6, 4, 3, dtype=torch.float64), torch.zeros(1, 4, 5, dtype=torch.float64))


# as a module


@every_kind
def test_it_is_copied_pickled_saved_and_moved(kind):
    mine, _ = twins(kind, 3, 5, 2, bidirectional=True)
    x = torch.randn(6, 4, 3, dtype=torch.float64)
    y, _ = mine(x)
    file = io.BytesIO()
    torch.save(mine.state_dict(), file)
    file.seek(0)
    loaded, _ = twins(kind, 3, 5, 2, bidirectional=True, seed=9)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    unpickled = pickle.loads(pickle.dumps(mine))  # noqa: S301 - our own bytes
    for other in (copy.deepcopy(mine), unpickled, loaded):
        close(other(x)[0], y)
    assert copy.deepcopy(mine).float()(x.float())[0].dtype == torch.float32
    mine.flatten_parameters()
    with torch.no_grad():
        mine.weight_ih_l0.zero_()
    assert not torch.equal(mine(x)[0], y)


@every_kind
def test_a_replaced_parameter_is_used(kind):
    mine, theirs = twins(kind, 3, 5)
    for module in (mine, theirs):
        module.weight_hh_l0 = torch.nn.Parameter(torch.zeros_like(module.weight_hh_l0))
    x = torch.randn(6, 4, 3, dtype=torch.float64)
    close(mine(x)[0], theirs(x)[0])


@every_kind
def test_an_ensemble_by_vmap_over_stacked_weights(kind):
    ensemble = [twins(kind, 3, 5, 2, bidirectional=True, seed=seed)[0] for seed in range(3)]
    parameters, buffers = torch.func.stack_module_state(ensemble)
    skeleton = copy.deepcopy(ensemble[0]).to("meta")
    x = torch.randn(6, 4, 3, dtype=torch.float64)

    def one(parameters, buffers, x):
        return torch.func.functional_call(skeleton, (parameters, buffers), (x,), {"lengths": [6, 0, 2, 5]})[0]

    together = torch.func.vmap(one, in_dims=(0, 0, None))(parameters, buffers, x)
    for module, y in zip(ensemble, together, strict=True):
        close(y, module(x, lengths=[6, 0, 2, 5])[0])


@every_kind
def test_gradients_of_each_sequence(kind):
    mine, _ = twins(kind, 3, 5, 2)
    x = torch.randn(6, 4, 3, dtype=torch.float64)
    weights = {name: value.detach() for name, value in mine.named_parameters()}

    def loss(weights, x):
        return torch.func.functional_call(mine, weights, (x[:, None],))[0].square().sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 1))(weights, x)
    for b in range(4):
        alone = torch.autograd.grad(mine(x[:, b : b + 1])[0].square().sum(), list(mine.parameters()))
        close([each[name][b] for name in weights], list(alone))


@every_kind
def test_second_derivatives(kind):
    mine, _ = twins(kind, 2, 3, 2, bidirectional=True)
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    hx = tuple(field.requires_grad_() for field in leaves(random_hx(mine, 2)))

    def outputs(x, *hx):
        y, state = mine(x, hx if len(hx) > 1 else hx[0])
        return (y, *leaves(state))

    assert torch.autograd.gradgradcheck(outputs, (x, *hx), fast_mode=True)


@every_kind
def test_threads_may_share_one(kind):
    mine, _ = twins(kind, 3, 5, 2)
    inputs = [torch.randn(12, 4, 3, dtype=torch.float64) for _ in range(32)]
    expected = [mine(x)[0] for x in inputs]
    with ThreadPoolExecutor(4) as threads:
        for y, y1 in zip(threads.map(lambda x: mine(x)[0], inputs), expected, strict=True):
            close(y, y1)


def test_it_compiles_into_one_graph():
    mine, _ = twins("LSTM", 3, 5, bidirectional=True)
    x, lengths = torch.randn(4, 3, 3, dtype=torch.float64), torch.tensor([4, 0, 2])
    compiled = torch.compile(mine, fullgraph=True, backend="eager")  # of interest is the graph, not its kernels
    y, state = compiled(x, lengths=lengths)
    expected, state1 = mine(x, lengths=lengths)
    close(y, expected)
    close(leaves(state), leaves(state1))
    weight = torch.randn_like(y)
    both = [torch.autograd.grad((weight * out).sum(), list(mine.parameters())) for out in (y, expected)]
    close(*both)
