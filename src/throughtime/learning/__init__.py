"""How a recurrence learns: the training loop, its settings, and what it leaves in a run folder."""

from throughtime.learning.interruption import Interrupted
from throughtime.learning.loop import Result, fit
from throughtime.learning.metrics import read_metrics
from throughtime.learning.problem import Loss, Problem
from throughtime.learning.randomness import seed_all
from throughtime.learning.run_folder import Config, begin_run, load_config, load_model, save_model
from throughtime.learning.training import Training

__all__ = [
    "Config",
    "Interrupted",
    "Loss",
    "Problem",
    "Result",
    "Training",
    "begin_run",
    "fit",
    "load_config",
    "load_model",
    "read_metrics",
    "save_model",
    "seed_all",
]
