"""How a recurrence learns: ways through time, clipping, initialisation, the training loop and what it leaves."""

from throughtime.learning.checkpointed import checkpointed
from throughtime.learning.clipping_in_time import ClippedGradient, clip_gradient
from throughtime.learning.initialisation import (
    chrono_,
    forget_bias_,
    identity_,
    orthogonal_,
    singular_value_,
    spectral_radius_,
)
from throughtime.learning.interruption import Interrupted
from throughtime.learning.loop import Result, fit
from throughtime.learning.metrics import read_metrics
from throughtime.learning.problem import Loss, Problem
from throughtime.learning.randomness import seed_all
from throughtime.learning.regularise import vanishing_gradient_penalty
from throughtime.learning.rtrl import RTRL, SnAp1
from throughtime.learning.run_folder import Config, begin_run, load_config, load_model, load_settings, save_model
from throughtime.learning.training import Training
from throughtime.learning.truncated import Window, truncated

__all__ = [
    "RTRL",
    "ClippedGradient",
    "Config",
    "Interrupted",
    "Loss",
    "Problem",
    "Result",
    "SnAp1",
    "Training",
    "Window",
    "begin_run",
    "checkpointed",
    "chrono_",
    "clip_gradient",
    "fit",
    "forget_bias_",
    "identity_",
    "load_config",
    "load_model",
    "load_settings",
    "orthogonal_",
    "read_metrics",
    "save_model",
    "seed_all",
    "singular_value_",
    "spectral_radius_",
    "truncated",
    "vanishing_gradient_penalty",
]
