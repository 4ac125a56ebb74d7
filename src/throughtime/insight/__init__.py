"""What happens inside a recurrence: gradients through time, Jacobians, memory, gates, states, fixed points."""

from throughtime.insight.fixed_points import FixedPoints, fixed_points
from throughtime.insight.gates import Gate, Gates, gates
from throughtime.insight.gradient_flow import FlowCurve, GradientFlow, gradient_flow
from throughtime.insight.jacobian import JacobianSpectrum, jacobian_spectrum
from throughtime.insight.memory import Memory, memory
from throughtime.insight.monitor import Monitor, TrainingWarning
from throughtime.insight.states import States, inside, position_in_line, states

__all__ = [
    "FixedPoints",
    "FlowCurve",
    "Gate",
    "Gates",
    "GradientFlow",
    "JacobianSpectrum",
    "Memory",
    "Monitor",
    "States",
    "TrainingWarning",
    "fixed_points",
    "gates",
    "gradient_flow",
    "inside",
    "jacobian_spectrum",
    "memory",
    "position_in_line",
    "states",
]
