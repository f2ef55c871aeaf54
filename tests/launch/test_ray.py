"""A sweep on a real Ray on this machine, with two workers."""

import os
import signal
import subprocess
import sys
import time

import pytest
import yaml

from ddpm.runs import Status

pytest.importorskip("ray")

TINY = [
    "train", "data=mnist_mini", "model=unet_tiny", "model.channels=8", "schedule.num_steps=50", "trainer=cpu",
    "trainer.limit_val_batches=0", "data.batch_size=16",
]  # fmt: skip
RAY = ["-m", "hydra/launcher=ray", "hydra.launcher.ray.init.num_cpus=2"]

MEETING = """
import os
import time
from pathlib import Path

import lightning as L


class Meeting(L.Callback):
    '''Waits until two jobs train at once, then aborts the job with seed 1.'''

    def on_train_start(self, trainer, model):
        folder = Path(trainer.default_root_dir).parents[3]
        (folder / f"began-{model.seed}").touch()
        began = time.monotonic()
        while len(list(folder.glob("began-*"))) < 2:
            assert time.monotonic() - began < 120, "no second job"
            time.sleep(0.1)
        if model.seed == 1:
            os.abort()
"""


@pytest.mark.slow
def test_jobs_run_at_once_and_a_crash_ends_one_job_alone(ddpm_cli, tmp_path):
    (tmp_path / "meeting.py").write_text(MEETING)
    environment = {"PYTHONPATH": str(tmp_path)}
    sweep = [*TINY, "trainer.max_steps=5", "seed=0,1,2", "+callbacks.meeting._target_=meeting.Meeting", *RAY]
    done = ddpm_cli(*sweep, env=environment)
    assert done.returncode == 1
    assert "1 of 3 jobs failed: seed=1" in done.stderr
    assert (done.stdout + done.stderr).count("ddpm train seed=1: its process was killed by SIGABRT") == 1
    configs = tmp_path.glob("outputs/train/default/*/config.yaml")
    runs = {yaml.safe_load(path.read_text())["seed"]: Status.read(path.parent) for path in configs}
    states = {seed: status.state for seed, status in runs.items() if status}
    assert (states[0], states[2]) == ("finished", "finished")


@pytest.mark.slow
def test_jobs_save_when_their_sweep_is_killed(tmp_path):
    """Ray then ends its workers; it must not kill the jobs."""
    sweep = subprocess.Popen(
        [sys.executable, "-m", "ddpm", *TINY, "trainer.max_steps=100000", "seed=0,1", *RAY],
        cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip

    def states() -> list[str]:
        found = (Status.read(path) for path in tmp_path.glob("outputs/train/default/*"))
        return [status.state for status in found if status]

    while states() != ["running"] * 2:
        assert sweep.poll() is None
        time.sleep(0.1)
    time.sleep(2)
    os.killpg(sweep.pid, signal.SIGKILL)
    sweep.wait()
    end = time.monotonic() + 60
    while states() != ["interrupted"] * 2:
        assert time.monotonic() < end
        time.sleep(0.1)
