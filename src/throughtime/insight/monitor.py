"""A watch on the training loop that says in words when a recurrence cannot learn, and what to try."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from throughtime.insight.gates import gates_of
from throughtime.insight.gradient_flow import FlowCurve, _projection, flow_of
from throughtime.insight.record import Layer, record_run
from throughtime.layers.recurrent import Recurrent
from throughtime.learning.nested import map_tensors

EXPLODES_BY = 1e3  # over the steps looked at
VANISHES_BY = 1e-3  # over the horizon
STUCK = 0.9  # share of a gate's values
DEAD = 0.5  # share of units
SURE = 50  # calls within which the monitor looks whatever it costs
SHARE = 0.02  # of the time, after that


class TrainingWarning(UserWarning):
    """The monitor's word on a run that trains badly."""


class Monitor:
    """Looks at a network as it trains: gradients through time, gates, units.

    Every so many training steps a few sequences of the batch at hand are run once more, with dropout off, on the
    reference backend, and their gradients followed back; what is found goes into ``numbers``, and what is wrong is said
    once, in words. It draws no random numbers and changes nothing. After the first 50 steps it takes at most about two
    in a hundred parts of the time.

    >>> import throughtime as tt
    >>> _ = torch.manual_seed(0)
    >>> net = tt.Recurrent(tt.cells.GRU, 3, 5)
    >>> monitor = Monitor(net, every=1)
    >>> _ = net(torch.randn(2, 20, 3))
    >>> sorted(monitor.numbers)[:3]
    ['dead layer 0', 'flow layer 0 h', 'stuck layer 0 n']
    >>> monitor.close()

    A monitor is called with each record of the training loop, and gives the numbers to add to it: it can be passed to
    `throughtime.learning.fit` as ``on_record``.

    Args:
        network: any module with a `Recurrent` in it.
        every: training steps (calls of the recurrent layers in training mode) between two looks.
        horizon: the lag that the task needs. Gradients are said to vanish where less than a thousandth of one is left
            after so many steps.
        rows: sequences looked at.
        steps: steps of each that are looked at.
        say: what to do with a warning; Python's warnings, as `TrainingWarning`, unless given.

    Raises:
        ValueError: the network has no `Recurrent` in it.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        every: int = 20,
        horizon: int = 10,
        rows: int = 2,
        steps: int = 64,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.network = network
        self.every = every
        self.horizon = horizon
        self.rows = rows
        self.steps = steps
        self.numbers: dict[str, float] = {}
        self.warnings: list[str] = []
        self._say = say
        self._said: set[str] = set()
        self._told = 0
        self._looking = False
        self._parts = {path: m for path, m in network.named_modules() if isinstance(m, Recurrent)}
        if not self._parts:
            raise ValueError(f"{type(network).__name__} has no throughtime.Recurrent in it to watch")
        self._calls = dict.fromkeys(self._parts, 0)
        self._took = 0.0
        self._next_time = -math.inf
        self._hooks = [
            part.register_forward_pre_hook(self._hook(path), with_kwargs=True) for path, part in self._parts.items()
        ]

    def __call__(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """The latest numbers, after a look at the parameters' gradients as they are now.

        Warnings since the last call stand under "monitor".
        """
        grads = [p.grad for p in self.network.parameters() if p.grad is not None]
        if grads and not all(bool(grad.isfinite().all()) for grad in grads):
            self._warn("exploding", f"gradients explode: some are no longer finite. {_AGAINST_EXPLOSION}")
        new, self._told = self.warnings[self._told :], len(self.warnings)
        return {**self.numbers, **({"monitor": new} if new else {})}

    def close(self) -> None:
        """Stops looking."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _hook(self, path: str) -> Callable[..., None]:
        def before_forward(module: Recurrent, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._looking or not module.training or not torch.is_grad_enabled():
                return
            self._calls[path] += 1
            calls = self._calls[path]
            if calls % self.every and calls != 1:
                return
            if calls > SURE and time.monotonic() < self._next_time:
                return
            began = time.monotonic()
            self._looking = True
            try:
                self._look(path, module, *args, **kwargs)
            finally:
                self._looking = False
            took = time.monotonic() - began
            self._next_time = began + took / SHARE

        return before_forward

    def _look(self, path: str, network: Recurrent, x: Tensor, state: Any = None, **options: Any) -> None:
        lengths = options.get("lengths")
        steps = min(self.steps, x.shape[1])
        rows = torch.arange(min(self.rows, x.shape[0]), device=x.device)
        if lengths is not None and x.shape[0]:
            lengths = torch.as_tensor(lengths, device=x.device)
            rows = lengths.argsort(descending=True)[: self.rows]
            steps = min(steps, int(lengths[rows].min()))
        if steps < 2 or not len(rows):
            return
        piece = x.detach()[rows, :steps]
        begin = map_tensors(lambda field: field.detach()[rows], state)
        with evaluating(network):
            y, layers = record_run(network, piece, state=begin)
            name = f"{path} " if len(self._parts) > 1 else ""
            if not bool(y.isfinite().all()):
                of = f"of {name}" if name else ""
                self._warn("exploding", f"states explode: the output {of}is not finite. {_AGAINST_EXPLOSION}")
                return
            times = (0, steps - 1) if network.bidirectional else (steps - 1,)
            flow = flow_of(layers, _projection(y), times)
        numbers = {}
        for curve in flow.curves:
            numbers[f"flow {name}{curve.name}"] = curve.rate
        self._judge_flow(name, flow.slowest, steps)
        for layer in layers:
            for gate in gates_of(layer):
                numbers[f"stuck {name}{layer.name} {gate.name}"] = gate.stuck
                if gate.stuck > STUCK:
                    self._warn(f"stuck {path} {layer.name} {gate.name}", _stuck(f"{name}{layer.name}", gate))
            dead = dead_units(layer)
            numbers[f"dead {name}{layer.name}"] = dead
            if dead > DEAD:
                self._warn(
                    f"dead {path} {layer.name}",
                    f"units die: {dead:.0%} of the units of {name}{layer.name} never change. Try a smaller learning "
                    "rate, tanh in place of relu, or fewer units.",
                )
        self.numbers.update({key: round(value, 6) for key, value in numbers.items() if math.isfinite(value)})

    def _judge_flow(self, name: str, curve: FlowCurve, steps: int) -> None:
        if math.isnan(curve.rate):
            if steps > self.horizon:
                self._warn("vanishing", f"gradients vanish: none reaches back {name}at all. {_AGAINST_VANISHING}")
            return
        log_rate = math.log(max(curve.rate, 1e-300))
        if log_rate * (steps - 1) > math.log(EXPLODES_BY):
            self._warn(
                "exploding",
                f"gradients explode: in {name}{curve.name} each step back multiplies them by {curve.rate:.3g}, "
                f"{steps - 1} steps by {math.exp(min(700.0, log_rate * (steps - 1))):.1g}. {_AGAINST_EXPLOSION}",
            )
        elif log_rate * self.horizon < math.log(VANISHES_BY):
            self._warn(
                "vanishing",
                f"gradients vanish: in {name}{curve.name}, the best way there is, each step back multiplies them by "
                f"{curve.rate:.3g}, so that less than a thousandth is left after {self.horizon} steps. "
                f"{_AGAINST_VANISHING}",
            )

    def _warn(self, kind: str, text: str) -> None:
        if kind in self._said:
            return
        self._said.add(kind)
        steps = max(self._calls.values())
        text = f"after {steps:,} training step{'s' if steps > 1 else ''}, {text}"
        self.warnings.append(text)
        if self._say is None:
            warnings.warn(text, TrainingWarning, stacklevel=2)
        else:
            self._say(text)


_AGAINST_EXPLOSION = (
    "Try clipping gradients by norm (1 is a good start), a smaller learning rate, or recurrent weights that start "
    "orthogonal (throughtime.learning.initialisation.orthogonal_)."
)
_AGAINST_VANISHING = (
    "Try a cell that keeps (LSTM or GRU, with a forget bias of 1 or more, or chrono_ for long lags), or recurrent "
    "weights that start orthogonal or as the identity (orthogonal_, identity_ of throughtime.learning.initialisation)."
)


def _stuck(layer: str, gate: Any) -> str:
    end = "open" if gate.right.mean() > gate.left.mean() else "shut"
    what = f"stands {end}" if gate.function.endswith("sigmoid") else "stands at its ends"
    return (
        f"{layer}'s {gate.name} is saturated: it {what} in {gate.stuck:.0%} of all steps and passes hardly any "
        "gradient. Try a smaller learning rate, smaller inputs or initial weights, or layer normalisation."
    )


def dead_units(layer: Layer) -> float:
    """The share of units whose state never changes, over the steps and sequences on record."""
    after = layer.record.after
    silent, units = 0, 0
    for name in after[0]._fields:
        field = torch.stack([getattr(state, name).detach() for state in after]).flatten(0, 1)  # (T * B, H)
        still = (field - field[:1]).abs().amax(0) < 1e-6
        silent += int(still.sum())
        units += still.numel()
    return silent / units


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """The network in eval mode, and each module as it was after."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
