"""Running any cell through time. One public function, `unroll`, and `explain`, which tells how it would run."""

from throughtime.engine.explain import Plan, SlowPathWarning, explain
from throughtime.engine.unroll import unroll

__all__ = ["Plan", "SlowPathWarning", "explain", "unroll"]
