"""Runs that are stopped in the middle: by signals, by kill -9, by a full disk, by a deleted directory."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from killed_runs import TINY, train

from ddpm.runs import Run
from ddpm.training.callbacks.last_checkpoint import SIGNALS

ROOT = Path(__file__).parents[2]
TRAIN = [
    "train", "data=mnist_mini", "data.batch_size=64", "model=unet_tiny", "model.channels=8", "trainer=cpu",
    "trainer.max_steps=100000", "trainer.limit_val_batches=0", "schedule.num_steps=50",
]  # fmt: skip


def status(folder: Path) -> dict:
    path = next(folder.glob("outputs/train/default/*/status.json"), None)
    return json.loads(path.read_text()) if path else {}


def test_each_signal_saves_and_the_same_command_continues(tmp_path: Path) -> None:
    for step, number in enumerate(SIGNALS):
        answer = train(tmp_path, *TINY, at=step, send=number.name)
        assert answer.returncode == 75
        assert f"interrupted by {number.name} after step {step + 1}: the same command continues" in answer.stderr
        assert "Traceback" not in answer.stderr
        assert (status(tmp_path)["state"], status(tmp_path)["step"]) == ("interrupted", step + 1)


def test_a_second_ctrl_c_stops_before_the_step_ends(tmp_path: Path) -> None:
    answer = train(tmp_path, *TINY, at=0, send="SIGINT SIGINT")
    assert answer.returncode == 1
    assert "Traceback" not in answer.stderr
    assert list(tmp_path.rglob("*.ckpt")) == []


@pytest.fixture
def training(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process of `ddpm train` that has made its first steps, and would continue for long."""
    process = subprocess.Popen(
        [sys.executable, "-m", "ddpm", *TRAIN],
        cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while process.poll() is None and status(tmp_path).get("pid") != process.pid:
        time.sleep(0.05)
    time.sleep(1)
    yield process
    process.kill()
    process.communicate()


def test_a_second_process_is_refused_and_a_deleted_directory_ends_the_first(training, ddpm_here, tmp_path) -> None:
    for restart in ("false", "true"):  # with true it would move the directory
        second = ddpm_here(*TRAIN, f"restart={restart}")
        assert second.returncode == 1
        assert f"process {training.pid} on" in second.stderr
        assert "Traceback" not in second.stderr
    assert training.poll() is None

    directory = next(tmp_path.glob("outputs/train/default/*"))
    shutil.rmtree(directory)
    with Run.open(directory) as run:
        run.end("running", 0)
        before = (directory / "status.json").read_bytes()
        _, message = training.communicate(timeout=120)
        assert training.returncode == 1
        assert "was deleted while this process trained in it" in message
        assert (directory / "status.json").read_bytes() == before


@pytest.mark.slow
def test_killed_runs_end_in_the_same_bits(tmp_path: Path) -> None:
    """Two processes with two workers each: SIGTERM at any moment, then SIGKILL while a checkpoint is written."""
    arguments = ["--kills", "2", "--devices", "2", "--workers", "2", "--how", "SIGTERM", "SIGKILL"]
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "kill_and_resume.py", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_a_full_disk_stops_the_run_and_more_space_lets_it_continue(ddpm_here, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", small], capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    command = [
        "train", "data=mnist_mini", "data.batch_size=16", "model=unet_tiny", "model.channels=8",
        "model.multipliers=[1,2]", "model.attention=[]", "trainer=cpu", "trainer.max_steps=10",
        "trainer.val_check_interval=5", "trainer.limit_val_batches=1", "callbacks.pictures.num_samples=4",
        "sampler.steps=5", "checkpoint.every_steps=2", f"paths.outputs={small}",
    ]  # fmt: skip
    try:
        full = ddpm_here(*command)
        assert full.returncode == 1
        assert "the disk is full" in full.stderr
        assert "Traceback" not in full.stderr
        subprocess.run(["mount", "-o", "remount,size=9m", small], check=True)
        more = ddpm_here(*command)
        assert more.returncode == 0, more.stderr
        assert "Continuing from step 4" in more.stdout
        assert list(small.rglob(".*.tmp")) == []
    finally:
        subprocess.run(["umount", small], check=True)
