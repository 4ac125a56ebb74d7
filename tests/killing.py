"""Trains the toy problem undisturbed, and killed by SIGKILL over and over and resumed: FOLDER KILLS SEED.

A script and not a test, so that torch is imported once and every sitting is a fork of this process.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

from throughtime.learning import Training, fit
from throughtime.learning.processes import make_fabric
from toy_problem import Toy

TRAINING = Training(
    steps=80,
    checkpoint_every=2,
    log_every=5,
    validate_every=6,
    schedule="plateau",
    optimizer="adam",
    average_weights=0.9,
)


def sitting(out):
    """Starts a process that trains, or goes on."""
    child = os.fork()
    if child == 0:
        fit(Toy(), out, TRAINING, resume=True)
        os._exit(0)
    return child


def ended(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(folder, kills, seed):
    drawn = random.Random(seed)
    make_fabric(TRAINING)  # imports what it needs, once
    assert ended(sitting(folder / "first")) == 0  # compiles what it needs, once
    began = time.monotonic()
    assert ended(sitting(folder / "whole")) == 0
    whole = time.monotonic() - began
    run = 0
    while kills:
        child = sitting(folder / f"killed-{run}")
        time.sleep(drawn.uniform(0.0, whole / 2))
        if os.waitpid(child, os.WNOHANG)[0]:
            run += 1  # it ended before it could be killed; another
            continue
        os.kill(child, signal.SIGKILL)
        assert ended(child) == -signal.SIGKILL
        kills -= 1
    assert ended(sitting(folder / f"killed-{run}")) == 0


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
