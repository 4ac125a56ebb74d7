"""How a recurrence learns: the training loop, its settings, and what it leaves in a run folder."""

from throughtime.learning.problem import Loss, Problem
from throughtime.learning.run_folder import Config, begin_run, load_config, load_model, save_model
from throughtime.learning.training import Training

__all__ = [
    "Config",
    "Loss",
    "Problem",
    "Training",
    "begin_run",
    "load_config",
    "load_model",
    "save_model",
]
