"""Runs that are stopped in the middle: by signals, by kill -9, by a second process that wants the same directory."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TRAIN = [
    "train", "data=mnist_mini", "data.batch_size=64", "model=unet_tiny", "model.channels=8", "trainer=cpu",
    "trainer.max_steps=100000", "trainer.limit_val_batches=0", "schedule.num_steps=50",
]  # fmt: skip


@pytest.fixture
def training(tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Starts `ddpm train`, which would go on for long, and returns when it has made its first steps."""
    processes = []

    def start() -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "ddpm", *TRAIN],
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        while process.poll() is None and status(tmp_path).get("pid") != process.pid:
            time.sleep(0.05)
        time.sleep(1)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def status(folder: Path) -> dict:
    path = next(folder.glob("outputs/train/default/*/status.json"), None)
    return json.loads(path.read_text()) if path else {}


def test_signals_save_and_say_how_to_go_on(training, tmp_path: Path) -> None:
    steps = [0]
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP):
        process = training()
        process.send_signal(number)
        _, message = process.communicate(timeout=60)
        assert process.returncode == 75
        assert f"interrupted by {number.name} after step" in message
        assert "the same command continues from there" in message
        assert "Traceback" not in message
        assert status(tmp_path)["state"] == "interrupted"
        assert status(tmp_path)["step"] > steps[-1]
        steps.append(status(tmp_path)["step"])


def test_a_second_ctrl_c_stops_at_once(training) -> None:
    process = training()
    process.send_signal(signal.SIGSTOP)  # so that both are there before the step ends
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode != 0


def test_a_second_process_is_refused_and_harms_nothing(training, ddpm_cli) -> None:
    first = training()
    second = ddpm_cli(*TRAIN)
    assert second.returncode == 1
    assert f"process {first.pid} on" in second.stderr
    assert "Traceback" not in second.stderr
    third = ddpm_cli(*TRAIN, "restart=true")  # which would move the directory
    assert third.returncode == 1
    assert first.poll() is None


def test_a_run_whose_directory_is_deleted_ends_and_leaves_the_next_one_alone(training, tmp_path: Path) -> None:
    first = training()
    shutil.rmtree(next(tmp_path.glob("outputs/train/default/*")))
    second = training()
    _, message = first.communicate(timeout=120)
    assert first.returncode == 1
    assert "was deleted while this process trained in it" in message
    assert second.poll() is None
    assert status(tmp_path)["pid"] == second.pid
    assert status(tmp_path)["state"] == "running"


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["--kills", "5"],
        ["--kills", "3", "--workers", "2"],
        ["--kills", "4", "--devices", "2", "--how", "SIGTERM", "SIGKILL", "SIGINT", "SIGUSR1"],
    ],
    ids=" ".join,
)
def test_killed_runs_end_in_the_same_bits(arguments: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "kill_and_resume.py", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_a_full_disk_stops_the_run_and_room_lets_it_go_on(ddpm_cli, tmp_path: Path) -> None:
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
        full = ddpm_cli(*command)
        assert full.returncode == 1
        assert "the disk is full" in full.stderr
        assert "Traceback" not in full.stderr
        subprocess.run(["mount", "-o", "remount,size=9m", small], check=True)
        more = ddpm_cli(*command)
        assert more.returncode == 0, more.stderr
        assert "Continuing from step 4" in more.stdout
        assert list(small.rglob(".*.tmp")) == []
    finally:
        subprocess.run(["umount", small], check=True)
