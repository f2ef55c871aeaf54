"""A sweep on a real Ray of this machine, with a worker a core."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from ddpm.runs import Status
from ddpm.runs.run import is_locked

pytest.importorskip("ray")

TINY = [
    "train", "data=mnist_mini", "model=unet_tiny", "model.channels=8", "schedule.num_steps=50", "trainer=cpu",
    "trainer.limit_val_batches=0", "data.batch_size=16", "checkpoint.every_steps=10",
]  # fmt: skip
ON_RAY = ["-m", "hydra/launcher=ray", "hydra.launcher.ray.init.num_cpus=2"]

MEETING = """
import time
from pathlib import Path

import lightning as L


class Meeting(L.Callback):
    '''Trains on when another job trains too; the job with seed 1 then dies.'''

    def on_train_start(self, trainer, model):
        folder = Path(trainer.default_root_dir).parents[3]
        (folder / f"began-{model.seed}").touch()
        began = time.monotonic()
        while len(list(folder.glob("began-*"))) < 2:
            assert time.monotonic() - began < 120, "nobody came"
            time.sleep(0.1)
        if model.seed == 1:
            import os
            os.abort()
"""


def run_of(folder: Path, seed: int) -> Path:
    configs = folder.glob("outputs/train/default/*/config.yaml")
    (path,) = (path.parent for path in configs if OmegaConf.load(path).seed == seed)
    return path


def weights(run: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return state


@pytest.mark.slow
def test_jobs_run_at_once_and_one_that_crashes_takes_no_other_along(ddpm_cli, tmp_path):
    (tmp_path / "meeting.py").write_text(MEETING)
    callback = "+callbacks.meeting._target_=meeting.Meeting"
    environment = {"PYTHONPATH": str(tmp_path)}
    sweep = [*TINY, "trainer.max_steps=5", "seed=0,1,2", callback, *ON_RAY]
    done = ddpm_cli(*sweep, env=environment)
    assert done.returncode == 1
    assert "1 of 3 jobs failed: seed=1" in done.stderr
    assert "the job's own process ended with -6" in done.stdout + done.stderr
    for seed in (0, 2):
        status = Status.read(run_of(tmp_path, seed))
        assert status is not None
        assert status.state == "finished"

    again = ddpm_cli(*sweep, "dry_run=true", env=environment)
    assert again.returncode == 0
    assert again.stdout.count("finished, 5 steps") == 2


@pytest.mark.slow
def test_a_killed_sweep_stops_its_jobs_and_goes_on_to_the_bits_of_a_single_run(ddpm_cli, tmp_path):
    alone, swept = tmp_path / "alone", tmp_path / "swept"
    for folder in (alone, swept):
        folder.mkdir()
    long = [*TINY, "trainer.max_steps=200"]
    assert ddpm_cli(*long, "seed=0", cwd=alone).returncode == 0

    sweep = subprocess.Popen(
        [sys.executable, "-m", "ddpm", *long, "seed=0,1", *ON_RAY],
        cwd=swept, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    while not (files := list(swept.glob("outputs/train/default/*/status.json"))):
        assert sweep.poll() is None
        time.sleep(0.1)
    time.sleep(2)
    os.killpg(sweep.pid, signal.SIGKILL)
    sweep.wait()
    began = time.monotonic()
    while any(is_locked(file.parent) for file in files):
        assert time.monotonic() - began < 60
        time.sleep(0.1)
    assert {status.state for file in files if (status := Status.read(file.parent))} == {"interrupted"}

    assert ddpm_cli(*long, "seed=0,1", *ON_RAY, cwd=swept).returncode == 0
    expected, found = weights(run_of(alone, 0)), weights(run_of(swept, 0))
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
