"""Kills a real `ddpm train` with kill -9, runs the same command again, and compares every bit of the results."""

import json
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from command_line import Answer, run_here, run_process
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from ddpm.training.callbacks import LastCheckpoint

TIMED = ("images/s", "watch/images/s")
"""measured times: equal runs log them at the same steps, with different values"""
STEP, SIGNALS, TO_SWEEP = "TEST_SIGNAL_STEP", "TEST_SIGNALS", "TEST_SIGNAL_TO_SWEEP"
"""environment variables for `SignalAtStep`"""
SIGNAL_AT_STEP = "+callbacks.signals._target_=killed_runs.SignalAtStep"
"""the override that adds this callback to a run"""
TINY = [
    "data=mnist_mini", "data.batch_size=16", "data.validation_size=9488", "model=unet_tiny", "model.channels=8",
    "model.multipliers=[1,2]", "model.attention=[]", "model.dropout=0.1", "trainer=cpu", "trainer.max_steps=6",
    "trainer.val_check_interval=4", "trainer.limit_val_batches=1", "trainer.log_every_n_steps=1",
    "checkpoint.every_steps=2", "optimizer.warmup_steps=3", "callbacks.pictures.num_samples=4", "sampler.steps=5",
]  # fmt: skip
"""overrides for a run of six steps, with dropout, a validation and pictures"""


class SignalAtStep(L.Callback):
    """Sends the signals in the variable `SIGNALS` to its own process, before the step in the variable `STEP`.

    With the variable `TO_SWEEP`, a job sends them to its sweep first. SIGKILL then goes to both; the sweep forwards
    other signals, and the job waits for them.
    """

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        if str(trainer.global_step) != os.environ.get(STEP):
            return
        for name in os.environ[SIGNALS].split():
            number = signal.Signals[name]
            if TO_SWEEP in os.environ:
                os.kill(os.getppid(), number)
                if number != signal.SIGKILL:
                    (last,) = (c for c in trainer.checkpoint_callbacks if isinstance(c, LastCheckpoint))
                    while last.signal != number:
                        time.sleep(0.01)
                    continue
            os.kill(os.getpid(), number)


def from_sweep(step: int, number: str) -> dict[str, str]:
    """Return the environment of a sweep whose jobs have SIGNAL_AT_STEP: a job that begins `step` signals the sweep."""
    return {"PYTHONPATH": str(Path(__file__).parent), STEP: str(step), SIGNALS: number, TO_SWEEP: "1"}


def train(
    folder: Path, *arguments: str, at: int | None = None, send: str = "SIGKILL", env: dict[str, str] | None = None
) -> Answer:
    """Run `ddpm train ARGUMENTS…` in `folder`; before the step `at` it sends the signals `send` to its own process.

    A run that gets SIGKILL has a process of its own. Other runs are made in this process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = ["train", *arguments, SIGNAL_AT_STEP]
    environment = {**(env or {}), STEP: str(at), SIGNALS: send}
    if at is None or send != "SIGKILL":
        return run_here(*command, cwd=folder, env=environment)
    path = [str(Path(__file__).parent), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    return run_process(*command, cwd=folder, env=environment)


def run_directory(folder: Path) -> Path:
    """The one run below `folder`/outputs."""
    (directory,) = (path.parent for path in folder.glob("outputs/train/*/*/config.yaml"))
    return directory


def check_exact_resume(
    folder: Path, *arguments: str, kill_at: Sequence[int], env: dict[str, str] | None = None
) -> tuple[Path, Path]:
    """Train once without a stop and once with a kill -9 at each step of `kill_at`; assert that the results are equal.

    The runs that are not killed are made in this process, so train on one device. Set checkpoint.every_steps below the
    first of `kill_at`, and not to a divisor of it: then steps after the last checkpoint are made, and logged, twice.

    Returns:
        The directories of the undisturbed run and of the killed one.
    """
    whole, killed = folder / "undisturbed", folder / "killed"
    done = train(whole, *arguments, env=env)
    assert done.returncode == 0, done.stderr
    for step in kill_at:
        done = train(killed, *arguments, at=step, env=env)
        assert done.returncode == -signal.SIGKILL, done.stderr
    done = train(killed, *arguments, env=env)
    assert done.returncode == 0, done.stderr
    assert "Continuing from step" in done.stdout
    runs = run_directory(whole), run_directory(killed)
    assert differences(final_state(runs[0]), final_state(runs[1])) == []
    return runs


def final_state(run: Path) -> dict[str, Any]:
    """Everything that a run ends with: weights, EMA, optimizer, schedule, TensorBoard's curves, metrics.json."""
    state: dict[str, Any] = {}
    for path in sorted((run / "checkpoints").glob("*.ckpt")):
        if path.stem != "previous":  # its step depends on when the run was stopped
            checkpoint = torch.load(path, weights_only=True)
            parts = ("state_dict", "optimizer_states", "lr_schedulers", "global_step")
            state[path.stem] = {part: checkpoint[part] for part in parts}
    assert "last" in state
    events = EventAccumulator(str(run), size_guidance={"scalars": 0, "images": 0}).Reload()
    for tag in events.Tags()["scalars"]:
        state[tag] = [(event.step, None if tag in TIMED else event.value) for event in events.Scalars(tag)]
    for tag in events.Tags()["images"]:
        state[tag] = [(event.step, event.encoded_image_string) for event in events.Images(tag)]
    metrics = json.loads((run / "metrics.json").read_text())
    state["metrics"] = {name: value for name, value in metrics.items() if name not in TIMED}
    state["leftovers"] = [str(path) for path in run.rglob(".*.tmp")]
    return state


def differences(expected: Any, found: Any, path: str = "") -> list[str]:
    """The places where two nested structures of tensors and plain values differ in any bit."""
    if isinstance(expected, torch.Tensor):
        return [] if torch.equal(expected, found) else [path]
    if isinstance(expected, dict):
        if expected.keys() != found.keys():
            return [f"{path}: keys {sorted(expected.keys() ^ found.keys(), key=str)}"]
        return [d for key in expected for d in differences(expected[key], found[key], f"{path}/{key}")]
    if isinstance(expected, (list, tuple)):
        if len(expected) != len(found):
            return [f"{path}: length {len(expected)} became {len(found)}"]
        pairs = zip(expected, found, strict=True)
        return [d for i, pair in enumerate(pairs) for d in differences(*pair, f"{path}/{i}")]
    return [] if expected == found else [f"{path}: {expected!r:.100} became {found!r:.100}"]
