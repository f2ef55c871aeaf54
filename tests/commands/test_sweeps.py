"""Sweeps of `ddpm train` in real processes: tiny networks, a few steps."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]
from tensorboard.plugins.hparams import plugin_data_pb2  # type: ignore[import-untyped]

from ddpm.runs import Status

TINY = [
    "data=mnist_mini", "model=unet_tiny", "model.channels=8", "schedule.num_steps=50", "trainer=cpu", "debug=fast",
]  # fmt: skip
QUICK = [*TINY, "trainer.max_steps=2"]


def runs(folder: Path) -> dict[str, Path]:
    """The runs in a folder, by their seeds as their names have them."""
    found = {re.search(r"seed-\d+", path.name): path for path in sorted(folder.glob("outputs/train/default/*"))}
    return {seed[0]: path for seed, path in found.items() if seed}


def states(folder: Path) -> dict[str, str]:
    found = {name: Status.read(path) for name, path in runs(folder).items()}
    return {name: status.state for name, status in found.items() if status}


def test_the_same_sweep_again_starts_what_is_new_and_broken_alone(ddpm_cli, tmp_path):
    assert ddpm_cli("train", *QUICK, "seed=0,1", "-m").returncode == 0
    before = {name: (path / "status.json").read_bytes() for name, path in runs(tmp_path).items()}
    assert before.keys() == {"seed-0", "seed-1"}

    again = ddpm_cli("train", *QUICK, "seed=0,1", "-m")
    assert again.returncode == 0
    assert "Launching" not in again.stdout
    assert {name: (path / "status.json").read_bytes() for name, path in runs(tmp_path).items()} == before

    for file in (runs(tmp_path)["seed-1"] / "checkpoints").iterdir():
        file.unlink()
    wider = ddpm_cli("train", *QUICK, "seed=0,1,2", "-m")
    assert wider.returncode == 0
    assert "Launching 2 jobs" in wider.stdout
    assert states(tmp_path) == {"seed-0": "finished", "seed-1": "finished", "seed-2": "finished"}
    assert (runs(tmp_path)["seed-0"] / "status.json").read_bytes() == before["seed-0"]


def test_a_sweep_with_an_impossible_job_starts_none_and_a_dry_run_leaves_no_trace(ddpm_cli, tmp_path):
    answer = ddpm_cli("train", *QUICK, "seed=0", "schedule.num_steps=50,5", "-m")
    assert answer.returncode == 1
    assert "nothing was started" in answer.stderr
    assert "schedule.num_steps=5: linear schedule" in answer.stderr
    answer = ddpm_cli("train", *QUICK, "seed=0,1", "dry_run=true", "-m")
    assert answer.returncode == 0
    assert "seed=1" in answer.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_named_sweep_is_the_runs_of_its_grid(ddpm_cli, tmp_path):
    answer = ddpm_cli("train", "+sweep=schedules", *QUICK, "dry_run=true", env={"COLUMNS": "200"})
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.count(" start ") == 12
    assert "schedule-sigmoid_schedule.num_steps-50_seed-2 " in answer.stdout
    assert "sweep-schedules" not in answer.stdout


def test_two_who_start_the_same_sweep_at_once_share_its_jobs(tmp_path):
    sweeps = [start(tmp_path, *QUICK, "seed=0,1,2", "-m", stdout=subprocess.PIPE) for _ in range(2)]
    outputs = [sweep.communicate(timeout=240) for sweep in sweeps]
    assert [sweep.returncode for sweep in sweeps] == [0, 0], outputs
    assert states(tmp_path) == {"seed-0": "finished", "seed-1": "finished", "seed-2": "finished"}
    trained = [line for screen, _ in outputs for line in screen.splitlines() if line.startswith("Training: ")]
    assert len(trained) == len(set(trained)) == 3
    for run in runs(tmp_path).values():
        assert len(list(run.glob("events*"))) == 1


def test_a_sweep_whose_runs_were_moved_or_deleted_does_what_is_missing(ddpm_cli, tmp_path):
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
    assert ddpm_cli("train", *QUICK, "seed=0,1,2", "-m", cwd=tmp_path / "here").returncode == 0
    (tmp_path / "here" / "outputs").rename(tmp_path / "there" / "outputs")
    shutil.rmtree(runs(tmp_path / "there")["seed-1"])
    before = {name: (path / "status.json").read_bytes() for name, path in runs(tmp_path / "there").items()}

    again = ddpm_cli("train", *QUICK, "seed=0,1,2", "-m", cwd=tmp_path / "there")
    assert again.returncode == 0
    assert "Launching 1 jobs" in again.stdout
    assert states(tmp_path / "there") == {"seed-0": "finished", "seed-1": "finished", "seed-2": "finished"}
    after = {name: (path / "status.json").read_bytes() for name, path in runs(tmp_path / "there").items()}
    assert {name: after[name] for name in before} == before


def hyperparameters(run: Path) -> list[dict[str, object]]:
    """What the run's event files, each read alone, say on the HPARAMS page."""
    rows = []
    for file in sorted(run.glob("events*")):
        events = EventAccumulator(str(file)).Reload()
        content = events.PluginTagToContent("hparams").get("_hparams_/session_start_info")
        if content:
            start = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info
            rows.append({key: value.string_value or value.number_value for key, value in start.hparams.items()})
    return rows


def test_hparams_hold_the_swept_keys_alone_also_after_a_resume(ddpm_cli, tmp_path):
    grid = ["seed=3", "schedule=cosine,linear", "optimizer.lr=1e-3,1e-4", "-m"]
    for steps in (1, 2):
        assert ddpm_cli("train", *TINY, f"trainer.max_steps={steps}", *grid).returncode == 0
    folders = list(tmp_path.glob("outputs/train/default/*"))
    found = [hyperparameters(run) for run in folders]
    assert all(len(rows) == 2 and rows[0] == rows[1] for rows in found)
    assert sorted((row["schedule"], row["optimizer.lr"]) for row, _ in found) == [
        ("cosine", 1e-4), ("cosine", 1e-3), ("linear", 1e-4), ("linear", 1e-3),
    ]  # fmt: skip
    assert all(row.keys() == {"schedule", "optimizer.lr"} for row, _ in found)
    assert all(EventAccumulator(str(run)).Reload().Scalars("val/bpd") for run in folders)


def start(folder: Path, *arguments: str, stdout: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "ddpm", "train", *arguments],
        cwd=folder,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ranks(folder: Path, seed: str) -> list[int]:
    """Processes that train in the run of a seed, the first rank first."""
    path = runs(folder).get(seed, folder / "nothing") / "status.json"
    if not path.is_file():
        return []
    first = json.loads(path.read_text())["pid"]
    children = Path(f"/proc/{first}/task/{first}/children")
    found = children.read_text().split() if children.exists() else []
    return [first, *(int(pid) for pid in found if b"ddpm" in Path(f"/proc/{pid}/cmdline").read_bytes())]


@pytest.mark.slow
def test_a_rank_that_dies_fails_its_job_alone(tmp_path):
    """Two jobs of two processes each: one rank of the first is killed."""
    two = ["trainer.devices=2", "trainer.limit_val_batches=0"]
    sweep = start(tmp_path, *TINY, *two, "seed=0,1", "trainer.max_steps=4000", "-m")
    while len(ranks(tmp_path, "seed-0")) < 2:
        assert sweep.poll() is None
        time.sleep(0.1)
    time.sleep(3)
    os.kill(ranks(tmp_path, "seed-0")[1], signal.SIGKILL)
    killed = time.monotonic()
    while "seed-1" not in states(tmp_path):
        assert sweep.poll() is None
        time.sleep(0.1)
    assert time.monotonic() - killed < 120
    time.sleep(3)
    sweep.terminate()  # is passed on, and the second job saves
    _, message = sweep.communicate(timeout=60)
    assert sweep.returncode == 75, message
    assert re.search("its process (was killed by SIGKILL|ended with exit code)", message)
    assert states(tmp_path)["seed-1"] == "interrupted"


@pytest.mark.slow
def test_a_job_in_processes_of_its_own_stops_when_its_sweep_is_killed(tmp_path):
    two = ["trainer.devices=2", "trainer.limit_val_batches=0"]
    sweep = start(tmp_path, *TINY, *two, "seed=0,1", "trainer.max_steps=100000", "-m")
    while len(pids := ranks(tmp_path, "seed-0")) < 2:
        assert sweep.poll() is None
        time.sleep(0.1)
    time.sleep(3)
    sweep.kill()
    sweep.communicate()
    killed = time.monotonic()
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() - killed < 60
        time.sleep(0.1)
    assert states(tmp_path) == {"seed-0": "interrupted"}


def results(folder: Path) -> dict[str, object]:
    return {
        name: (
            torch.load(path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"],
            json.loads((path / "metrics.json").read_text()),
        )
        for name, path in runs(folder).items()
    }


@pytest.mark.slow
def test_a_killed_sweep_ends_with_the_results_of_one_left_alone(ddpm_cli, tmp_path):
    grid = [*TINY, "trainer.max_steps=12", "checkpoint.every_steps=3", "seed=0,1,2,3,4,5", "-m"]
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    for folder in (undisturbed, disturbed):
        folder.mkdir()
    began = time.monotonic()
    assert ddpm_cli("train", *grid, cwd=undisturbed).returncode == 0
    duration = time.monotonic() - began

    chance = random.Random(0)
    for _ in range(3):
        sweep = start(disturbed, *grid)
        time.sleep(chance.uniform(0.3, 0.8) * duration)
        os.killpg(sweep.pid, signal.SIGKILL)
        sweep.communicate()
    assert ddpm_cli("train", *grid, cwd=disturbed).returncode == 0

    expected, found = results(undisturbed), results(disturbed)
    assert found.keys() == expected.keys()
    for name, (weights, metrics) in expected.items():
        assert all(torch.equal(tensor, found[name][0][key]) for key, tensor in weights.items())
        assert {**found[name][1], "images/s": None} == {**metrics, "images/s": None}
