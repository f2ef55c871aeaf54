#!/usr/bin/env python
"""Kill real training runs at random moments, continue each with the same command until it ends, and compare every bit
with an undisturbed run: weights, EMA, optimizer, learning rate, and everything in TensorBoard.

    python scripts/kill_and_resume.py --kills 100
    python scripts/kill_and_resume.py --kills 6 --devices 2 --how SIGTERM SIGINT SIGUSR1

Exit code 1 if anything differs. Needs Linux (/proc).
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from tensorboard.util import tb_logging

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))
from killed_runs import TINY, differences, final_state, run_directory

console = Console()
tb_logging.get_logger().setLevel("ERROR")  # it warns of steps that were made twice, as they are here

# With accumulation and several epochs too.
SETTINGS = [
    *TINY, "data.batch_size=16", "data.validation_size=9700", "trainer.max_steps=40",
    "trainer.accumulate_grad_batches=2", "trainer.val_check_interval=14", "checkpoint.every_steps=4",
    "optimizer.warmup_steps=10", "callbacks.progress.refresh_rate=0",
]  # fmt: skip
INTERRUPTED = 75


class Trial:
    """One run under test, and the processes that train in it one after the other."""

    def __init__(self, folder: Path, overrides: list[str]):
        self.folder = folder
        self.command = [sys.executable, "-m", "ddpm", "train", *SETTINGS, *overrides]
        folder.mkdir(parents=True, exist_ok=True)

    def start(self) -> subprocess.Popen[bytes]:
        log = (self.folder / "log.txt").open("ab")
        return subprocess.Popen(self.command, cwd=self.folder, stdout=log, stderr=log, start_new_session=True)

    def log(self) -> str:
        path = self.folder / "log.txt"
        return path.read_text() if path.is_file() else ""

    def status(self) -> dict[str, Any]:
        """Content of status.json, which must be valid at every moment; empty before there is one."""
        path = next(self.folder.glob("outputs/train/default/*/status.json"), None)
        return json.loads(path.read_text()) if path else {}

    def saves(self) -> bool:
        return any(self.folder.glob("outputs/train/default/*/checkpoints/.*.tmp"))


def strike(trial: Trial, how: str, moment: str, patience: float, chance: random.Random) -> str:
    """Start the run and send one signal. Returns how the process ended: killed, interrupted or finished."""
    log_before = len(trial.log())
    process = trial.start()
    while process.poll() is None and (not trial.status() or trial.status()["pid"] != process.pid):
        time.sleep(0.02)  # during the imports there is nothing to lose
    if how != "SIGKILL":
        time.sleep(1)  # a rank that has not begun to train ends at a signal like any process
    deadline = time.monotonic() + chance.uniform(0, patience)
    while process.poll() is None and (time.monotonic() < deadline if moment == "any" else not trial.saves()):
        time.sleep(0.001)
    if process.poll() is None:
        if how == "SIGKILL":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            processes = [process.pid, *children(process.pid)]
            victims = chance.choice([processes, *([pid] for pid in processes)])  # all, or any one rank
            for pid in victims:
                os.kill(pid, signal.Signals[how])
    code = process.wait(timeout=120)
    if code == 0:
        return "finished"
    if code == INTERRUPTED:
        assert trial.status()["state"] == "interrupted", trial.status()
        return "interrupted"
    # After the last step our handlers are gone.
    edge = {-signal.Signals[how], 128 + signal.Signals[how], -signal.SIGKILL, 1}
    if code == -signal.SIGKILL and how == "SIGKILL":
        return "killed"
    if how != "SIGKILL" and code in edge and "Traceback" not in trial.log()[log_before:]:
        return f"ended at the edge with {code}"
    raise SystemExit(f"the run ended with {code}:\n{trial.log()[-3000:]}")


def children(pid: int) -> list[int]:
    """Child processes that run ddpm."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found if b"ddpm" in Path(f"/proc/{child}/cmdline").read_bytes()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--how", nargs="+", default=["SIGKILL"], help="SIGKILL, SIGTERM, SIGINT, SIGUSR1: in turn")
    parser.add_argument("--devices", type=int, default=1, help="processes that train together")
    parser.add_argument("--workers", type=int, default=0, help="data.num_workers")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("overrides", nargs="*", help="more overrides of `ddpm train`")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # the same for all, since sums depend on it
    overrides = [f"trainer.devices={arguments.devices}", f"data.num_workers={arguments.workers}", *arguments.overrides]
    chance = random.Random(arguments.seed)
    outcomes: Counter[tuple[str, str, str]] = Counter()
    wrong: list[str] = []

    with tempfile.TemporaryDirectory() as name:
        reference = Trial(Path(name) / "reference", overrides)
        code = reference.start().wait()
        if code != 0:
            raise SystemExit(f"the undisturbed run failed:\n{reference.log()[-3000:]}")
        expected = final_state(run_directory(reference.folder))
        patience = 1.2 * reference.status()["seconds"]
        console.print(f"undisturbed: {reference.status()['seconds']:.1f} s of training")

        struck = trials = 0
        while struck < arguments.kills:
            trials += 1
            trial = Trial(Path(name) / f"trial-{trials}", overrides)
            result = ""
            while result != "finished":
                if struck < arguments.kills:
                    how = arguments.how[struck % len(arguments.how)]
                    moment = "save" if struck % 3 == 1 else "any"
                    result = strike(trial, how, moment, patience, chance)
                    struck += result != "finished"
                    outcomes[how, moment, result] += 1
                    console.print(
                        f"trial {trials}, strike {struck}: {how}, {moment}: {result}, {trial.status().get('step')}"
                    )
                else:
                    result = "finished" if trial.start().wait() == 0 else "failed"
                    if result == "failed":
                        raise SystemExit(trial.log()[-3000:])
            wrong += [f"trial {trials}: {d}" for d in differences(expected, final_state(run_directory(trial.folder)))]

    table = Table(
        "signal", "moment", "outcome", "times", title=f"{struck} strikes on {trials} runs", title_justify="left"
    )
    for (how, moment, result), times in sorted(outcomes.items()):
        table.add_row(how, moment, result, str(times))
    console.print(table)
    console.print(f"different from the undisturbed run: {len(wrong)}", *wrong[:20], sep="\n")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
