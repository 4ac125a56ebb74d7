"""Trains the toy problem twice, once killed by SIGKILL over and over, and prints what became of it as JSON.

A script and not a test, so that torch is imported once and every sitting is a fork of this process.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from throughtime.learning import Training, fit
from throughtime.learning.processes import make_fabric
from toy_problem import Toy

TRAINING = Training(steps=80, checkpoint_every=2, log_every=5, validate_every=6, schedule="plateau", optimizer="adam")


def sitting(out):
    """Starts a process that trains, or goes on."""
    child = os.fork()
    if child == 0:
        fit(Toy(), out, TRAINING, resume=True)
        os._exit(0)
    return child


def ended(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(folder, most, seed):
    drawn = random.Random(seed)
    make_fabric(TRAINING)  # imports what it needs, once
    began = time.monotonic()
    assert ended(sitting(folder / "whole")) == 0
    whole = time.monotonic() - began
    kills = 0
    while True:
        child = sitting(folder / "killed")
        if kills < most:
            time.sleep(drawn.uniform(0.0, 2.5 * whole / most))
            if os.waitpid(child, os.WNOHANG)[0]:
                break
            os.kill(child, signal.SIGKILL)
            assert ended(child) == -signal.SIGKILL
            kills += 1
        else:
            assert ended(child) == 0
            break
    sys.stdout.write(json.dumps({"kills": kills}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
