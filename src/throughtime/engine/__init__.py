"""Running any cell through time: `unroll`; `Stepper`, one step at a time; `explain`, which tells how it would run."""

from throughtime.engine.explain import Plan, SlowPathWarning, explain
from throughtime.engine.stepper import Stepper
from throughtime.engine.unroll import unroll

__all__ = ["Plan", "SlowPathWarning", "Stepper", "explain", "unroll"]
