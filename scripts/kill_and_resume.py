#!/usr/bin/env python
"""Kill real training runs at random moments, resume each with the same command until it ends, and compare every bit
with the run that was left alone: weights, moving average, optimizer, schedule, and the curves in TensorBoard.

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

import torch
from rich.console import Console
from rich.table import Table
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util import tb_logging

console = Console()
tb_logging.get_logger().setLevel("ERROR")  # it warns of what is meant: steps that were made again

# Everything that a resume could get wrong, small: dropout, accumulation, several epochs, frequent saves and pictures.
SETTINGS = (
    "data=mnist_mini data.batch_size=64 data.validation_size=8800 "
    "model=unet_tiny model.channels=8 model.multipliers=[1,2] model.attention=[] model.dropout=0.1 "
    "trainer=cpu trainer.max_steps=60 trainer.accumulate_grad_batches=2 trainer.val_check_interval=14 "
    "trainer.limit_val_batches=1 trainer.log_every_n_steps=1 checkpoint.every_steps=4 optimizer.warmup_steps=10 "
    "callbacks.pictures.num_samples=4 sampler.steps=5 callbacks.progress.refresh_rate=0"
)
INTERRUPTED = 75


class Trial:
    """One run under test: its directory, and the processes that come and go in it."""

    def __init__(self, folder: Path, overrides: list[str]):
        self.folder = folder
        self.command = [sys.executable, "-m", "ddpm", "train", *SETTINGS.split(), *overrides]
        folder.mkdir(parents=True, exist_ok=True)

    def start(self) -> subprocess.Popen[bytes]:
        log = (self.folder / "log.txt").open("ab")
        return subprocess.Popen(self.command, cwd=self.folder, stdout=log, stderr=log, start_new_session=True)

    def log(self) -> str:
        path = self.folder / "log.txt"
        return path.read_text() if path.is_file() else ""

    @property
    def run(self) -> Path:
        return next(self.folder.glob("outputs/train/default/*"))

    def status(self) -> dict[str, Any]:
        """status.json, which must be valid at every instant; empty before there is one."""
        path = next(self.folder.glob("outputs/train/default/*/status.json"), None)
        return json.loads(path.read_text()) if path else {}

    def saves(self) -> bool:
        return any(self.folder.glob("outputs/train/default/*/checkpoints/.*.tmp"))


def strike(trial: Trial, how: str, moment: str, patience: float, chance: random.Random) -> str:
    """Start the run, strike once, and say what became of it: killed, interrupted or finished."""
    log_before = len(trial.log())
    process = trial.start()
    while process.poll() is None and (not trial.status() or trial.status()["pid"] != process.pid):
        time.sleep(0.02)  # its imports are no place to be killed in: nothing has begun
    if how != "SIGKILL":
        time.sleep(1)  # until all ranks have begun, a signal ends them as it ends any process
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
    # A signal after the last step ends the process as it ends any other.
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


def differences(expected: Any, found: Any, path: str = "") -> list[str]:
    """Where two nested structures of tensors and plain values differ in any bit."""
    if isinstance(expected, torch.Tensor):
        return [] if torch.equal(expected, found) else [path]
    if isinstance(expected, dict):
        if expected.keys() != found.keys():
            return [f"{path}: keys"]
        return [d for key in expected for d in differences(expected[key], found[key], f"{path}/{key}")]
    if isinstance(expected, (list, tuple)):
        if len(expected) != len(found):
            return [f"{path}: length"]
        return [
            d for i, pair in enumerate(zip(expected, found, strict=True)) for d in differences(*pair, f"{path}/{i}")
        ]
    return [] if expected == found else [f"{path}: {expected} became {found}"]


def final_state(run: Path) -> dict[str, Any]:
    """What the run must end with, whatever befell it."""
    state: dict[str, Any] = {}
    for name in ("last", "best"):
        checkpoint = torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)
        state[name] = {
            key: checkpoint[key] for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step")
        }
    events = EventAccumulator(str(run), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    for tag in events.Tags()["scalars"]:
        timed = tag == "images/s"  # its steps must be the same, its values cannot
        state[tag] = [(event.step, None if timed else event.value) for event in events.Scalars(tag)]
    for tag in events.Tags()["images"]:
        state[tag] = [event.step for event in events.Images(tag)]
    metrics = json.loads((run / "metrics.json").read_text())
    state["metrics"] = {key: value for key, value in metrics.items() if key != "images/s"}
    state["leftovers"] = [str(path) for path in run.rglob(".*.tmp")]
    return state


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
        expected = final_state(reference.run)
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
                    moment = "save" if struck % 5 == 4 else "any"
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
            wrong += [f"trial {trials}: {d}" for d in differences(expected, final_state(trial.run))]

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
