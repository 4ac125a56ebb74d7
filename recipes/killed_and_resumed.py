"""Trains a language model undisturbed, then killed by SIGKILL at random moments and resumed: the same bits at the end?

    python recipes/killed_and_resumed.py TEXT FOLDER [KILLS] [SEED]

Both runs are the command `throughtime train language` with the same settings. Moments of the second are drawn from its
start-up and its training alike; where it reaches its end before it has been killed so many times, another one begins.
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
        "--steps 12000 --checkpoint-every 50 --hidden 64 --embedding 16 --batch-size 8 --window 32 "
        "--cell lstm-zoneout --dropout 0.1 --validate-every 2000 --valid-units 5000"
    )
    whole, killed = Path(folder, "whole"), Path(folder, "killed")
    for run in (whole, killed):
        shutil.rmtree(run, ignore_errors=True)

    def start(out: Path) -> subprocess.Popen[bytes]:
        command = ["throughtime", "train", "language", "--text", text, "--out", str(out), "--resume"]
        launch = [sys.executable, "-m", *command, *settings.split()]
        return subprocess.Popen(launch, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def same() -> bool:
        return (whole / "model.safetensors").read_bytes() == (killed / "model.safetensors").read_bytes()

    began = time.monotonic()
    if start(whole).wait():
        raise SystemExit("the undisturbed run failed")
    takes = time.monotonic() - began
    drawn = random.Random(int(seed))
    done, ends = 0, []
    while done < int(kills):
        process = start(killed)
        try:
            status = process.wait(drawn.uniform(0, takes / 3))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            status = process.wait()
        if status == -signal.SIGKILL:
            done += 1
            print(f"killed {done} times", flush=True)
        elif status == 0:
            ends.append(same())
            shutil.rmtree(killed)
        else:
            raise SystemExit(f"a resumed run ended with status {status}")
    if start(killed).wait():
        raise SystemExit("the resumed run failed")
    ends.append(same())
    print(
        f"{done} kills in {len(ends)} runs; model.safetensors {'bitwise the same' if all(ends) else 'DIFFERS'}: {ends}"
    )
    return 0 if all(ends) else 1


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
