"""Sweeps on a real Slurm of two nodes: as an array, over two nodes, preempted, killed."""

import functools
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import run_here, run_process

from ddpm.runs import Status

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("slurm")]

SLURM = ["-m", "hydra/launcher=slurm"]
TINY = ["data=mnist_mini", "model=unet_tiny", "model.channels=8", "schedule.num_steps=50", "trainer=cpu"]
QUICK = [*TINY, "debug=fast", "trainer.max_steps=2"]
LONGER = [
    *TINY, "trainer.max_steps=200", "trainer.limit_val_batches=0", "data.batch_size=8", "callbacks.pictures=null",
]  # fmt: skip


def runs(folder: Path) -> list[Path]:
    return sorted(folder.glob("outputs/train/default/*"))


def test_a_sweep_is_an_array_whose_jobs_fail_alone(ddpm_here, tmp_path: Path) -> None:
    keys = ["hydra.launcher.partition=tests", "hydra.launcher.timeout_min=30", "hydra.launcher.array_parallelism=1"]
    first = ddpm_here("train", *QUICK, "seed=0,1", *SLURM, *keys)
    assert first.returncode == 0, first.stdout + first.stderr
    (script,) = tmp_path.glob("outputs/.slurm/*/*_submission.sh")
    options = script.read_text()
    for option in ("array=0-1%1", "partition=tests", "time=30", "job-name=ddpm-train", "nodes=1", "requeue"):
        assert f"#SBATCH --{option}\n" in options

    first_run, _ = runs(tmp_path)
    for file in (first_run / "checkpoints").iterdir():
        file.write_bytes(b"damaged")
    again = ddpm_here("train", *QUICK, "trainer.max_steps=3", "seed=0,1", *SLURM)
    assert again.returncode == 1
    assert re.search(r"_0 seed=0: failed: no checkpoint in .* is intact", again.stdout)
    assert re.search(r"_1 seed=1: finished", again.stdout)
    assert "Traceback" not in again.stdout + again.stderr
    assert "1 of 2 jobs failed: seed=0" in again.stderr


def test_impossible_resources_are_refused_in_a_line(ddpm_here, tmp_path: Path) -> None:
    answer = ddpm_here("train", *QUICK, *SLURM, "hydra.launcher.partition=nowhere")
    assert answer.returncode == 1
    assert "invalid partition specified: nowhere" in answer.stderr
    answer_of_job = ddpm_here("train", *QUICK, *SLURM, "hydra.launcher.tasks_per_node=2")
    assert answer_of_job.returncode == 1
    assert "`--ntasks-per-node=2` does not match" in answer_of_job.stdout
    assert "Traceback" not in answer.stderr + answer_of_job.stdout
    assert runs(tmp_path) == []


def weights(folder: Path) -> dict[str, Any]:
    """Everything that training changes: weights, EMA, state of the optimizer."""
    (run,) = runs(folder)
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    optimizer = checkpoint["optimizer_states"][0]["state"]
    of_optimizer = {f"{i}.{name}": value for i, state in optimizer.items() for name, value in state.items()}
    return checkpoint["state_dict"] | of_optimizer


@pytest.fixture(scope="module")
def left_alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], dict[str, Any]]:
    """Trains without Slurm and undisturbed; a function of the number of processes that returns the weights."""

    @functools.cache
    def train(processes: int) -> dict[str, Any]:
        folder = tmp_path_factory.mktemp("alone")
        run = run_here if processes == 1 else run_process  # Lightning starts more processes of a script, not of pytest
        done = run("train", *LONGER, f"trainer.devices={processes}", cwd=folder)
        assert done.returncode == 0, done.stderr
        return weights(folder)

    return train


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start a run on Slurm; return when it trains."""
    sweep = subprocess.Popen(
        [sys.executable, "-m", "ddpm", "train", *LONGER, *arguments, *SLURM],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while not any((status := Status.read(run)) and status.state == "running" for run in runs(folder)):
        assert sweep.poll() is None, sweep.communicate()
        time.sleep(0.05)
    return sweep


def number_of_job() -> str:
    (number,) = subprocess.check_output(["squeue", "--me", "--noheader", "--format=%i"], text=True).split()
    return number


def requeue(job: str) -> None:
    subprocess.run(["scontrol", "requeue", job], check=True)


def warn_of_time_limit(job: str) -> None:
    subprocess.run(["scancel", "--signal=USR2", job], check=True)


def warn_of_preemption(job: str) -> None:
    subprocess.run(["sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--wrap=true"], check=True, cwd="/tmp")


@pytest.mark.parametrize(
    ("processes", "arguments", "preempt"),
    [
        (1, ["restart=true"], warn_of_preemption),  # restarts once, not at each start of the job
        (2, ["trainer.num_nodes=2"], requeue),
        (1, [], warn_of_time_limit),
    ],
)
def test_a_preempted_job_ends_in_the_bits_of_one_left_alone(
    left_alone, tmp_path: Path, processes: int, arguments: list[str], preempt: Callable[[str], None]
) -> None:
    sweep = start(tmp_path, *arguments)
    preempt(number_of_job())
    output, _ = sweep.communicate(timeout=240)
    assert sweep.returncode == 0, output
    assert re.findall(r"\d+: (pending|running|finished)\n", output) == ["pending", "running"] * 2 + ["finished"]
    (log,) = tmp_path.glob("outputs/.slurm/*/*_0_log.out")
    assert re.search(r"Continuing from step [1-9]", log.read_text())

    expected, found = left_alone(processes), weights(tmp_path)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_the_sweep_does_not_wait_for_a_killed_job(tmp_path: Path) -> None:
    sweep = start(tmp_path)
    status = Status.read(*runs(tmp_path))
    assert status is not None
    os.kill(status.pid, signal.SIGKILL)
    output, _ = sweep.communicate(timeout=120)
    assert sweep.returncode == 1
    assert "Slurm says it is FAILED" in output
    assert "1 of 1 jobs failed" in output
