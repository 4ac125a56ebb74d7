"""Trains a language model undisturbed, then killed by SIGKILL at random moments and resumed: the same bits at the end?

    python recipes/killed_and_resumed.py TEXT FOLDER [KILLS] [SEED]

Both runs are the command `throughtime train language` with the same settings; the second is killed so many times.
"""

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path


def main(text: str, folder: str, kills: str = "20", seed: str = "1") -> int:
    settings = (
        "--steps 3000 --checkpoint-every 20 --hidden 64 --embedding 16 --batch-size 8 --window 32 "
        "--cell lstm-zoneout --dropout 0.1 --validate-every 500 --valid-units 5000"
    )
    whole, killed = Path(folder, "whole"), Path(folder, "killed")
    for run in (whole, killed):
        shutil.rmtree(run, ignore_errors=True)

    def start(out: Path) -> subprocess.Popen[bytes]:
        command = ["throughtime", "train", "language", "--text", text, "--out", str(out), "--resume"]
        launch = [sys.executable, "-m", *command, *settings.split()]
        return subprocess.Popen(launch, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    began = time.monotonic()
    if start(whole).wait():
        raise SystemExit("the undisturbed run failed")
    takes = time.monotonic() - began
    drawn = random.Random(int(seed))
    done = 0
    while done < int(kills):
        process = start(killed)
        time.sleep(drawn.uniform(0, takes / 4))
        process.send_signal(signal.SIGKILL)
        done += process.wait() == -signal.SIGKILL
        print(f"killed {done} times", flush=True)
    if start(killed).wait():
        raise SystemExit("the resumed run failed")
    same = (whole / "model.safetensors").read_bytes() == (killed / "model.safetensors").read_bytes()
    print(f"{done} kills; model.safetensors {'is bitwise the same' if same else 'DIFFERS'}")
    return 0 if same else 1


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
