"""Studies: the same question put to many cells."""

from throughtime.studies.memory import Outcome, Settings, memory_study
from throughtime.studies.problems import PROBLEMS, Batch, Problem

__all__ = ["PROBLEMS", "Batch", "Outcome", "Problem", "Settings", "memory_study"]
