"""Sweeps of `ddpm train`: tiny networks, a few steps, each job in a process of its own."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from killed_runs import SIGNAL_AT_STEP, differences, final_state, from_sweep
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]
from tensorboard.plugins.hparams import plugin_data_pb2  # type: ignore[import-untyped]

from ddpm.runs import Status

TINY = [
    "data=mnist_mini", "model=unet_tiny", "model.channels=8", "schedule.num_steps=50", "trainer=cpu", "debug=fast",
]  # fmt: skip
QUICK = [*TINY, "trainer.max_steps=2"]


def runs(folder: Path) -> dict[int, Path]:
    """The runs in a folder, by their seeds."""
    configs = folder.glob("outputs/train/default/*/config.yaml")
    return {config["seed"]: path.parent for path in configs if (config := yaml.safe_load(path.read_text()))}


def states(folder: Path) -> dict[int, str]:
    return {seed: status.state for seed, path in runs(folder).items() if (status := Status.read(path))}


def test_a_sweep_trains_the_jobs_that_are_not_finished(ddpm_here, tmp_path):
    """Of two runs one is finished and one lost its checkpoints; both were moved to another folder."""
    made, moved = tmp_path / "made", tmp_path / "moved"
    for folder in (made, moved):
        folder.mkdir()
    for seed in (0, 1):
        done = ddpm_here("train", *QUICK, f"seed={seed}", cwd=made)
        assert done.returncode == 0, done.stderr
    (made / "outputs").rename(moved / "outputs")
    before = runs(moved)
    assert before.keys() == {0, 1}
    finished = (before[0] / "status.json").read_bytes()
    for file in (before[1] / "checkpoints").iterdir():
        file.unlink()

    done = ddpm_here("train", *QUICK, "seed=0,1", "-m", cwd=moved)
    assert done.returncode == 0, done.stderr
    assert "Launching 1 jobs" in done.stdout
    assert runs(moved) == before  # a job of a sweep is the run with its overrides
    assert set(states(moved).values()) == {"finished"}
    assert (before[0] / "status.json").read_bytes() == finished
    assert [path.name for path in moved.iterdir()] == ["outputs"]

    again = ddpm_here("train", *QUICK, "seed=0,1", "-m", cwd=moved)
    assert again.returncode == 0, again.stderr
    assert "Launching" not in again.stdout


def test_a_sweep_with_an_impossible_job_starts_none_and_a_dry_run_writes_nothing(ddpm_here, tmp_path):
    answer = ddpm_here("train", *QUICK, "seed=0", "schedule.num_steps=50,5", "-m")
    assert answer.returncode == 1
    assert "nothing was started" in answer.stderr
    assert "schedule.num_steps=5: linear schedule" in answer.stderr
    answer = ddpm_here("train", "+sweep=schedules", "schedule=cosine", *QUICK, "dry_run=true")  # one of the four
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.count(" start ") == 3
    assert "sweep-schedules" not in answer.stdout
    assert "seed=2" in answer.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_two_sweeps_of_the_same_grid_share_its_jobs(ddpm_here, tmp_path):
    sweep = start(tmp_path, *QUICK, "seed=0,1", "-m", stdout=subprocess.PIPE)
    here = ddpm_here("train", *QUICK, "seed=0,1", "-m")
    screen, message = sweep.communicate(timeout=240)
    assert [sweep.returncode, here.returncode] == [0, 0], message + here.stderr
    assert states(tmp_path) == {0: "finished", 1: "finished"}
    trained = [line for line in (screen + here.stdout).splitlines() if line.startswith("Training: ")]
    assert len(trained) == len(set(trained)) == 2
    for run in runs(tmp_path).values():
        assert len(list(run.glob("events*"))) == 1


def hyperparameters(run: Path) -> list[dict[str, object]]:
    """The hyperparameters of the HPARAMS page, in each of the run's event files."""
    rows = []
    for file in sorted(run.glob("events*")):
        events = EventAccumulator(str(file)).Reload()
        content = events.PluginTagToContent("hparams").get("_hparams_/session_start_info")
        if content:
            start = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info
            rows.append({key: value.string_value or value.number_value for key, value in start.hparams.items()})
    return rows


def test_the_hparams_page_has_only_the_swept_keys_also_after_a_resume(ddpm_here, tmp_path):
    """A job as a sweep over two keys starts it; tests/cli shows that a sweep sends the swept keys."""
    job = [
        "seed=3",
        "schedule=cosine",
        "optimizer.lr=1e-3",
        "hydra.job.env_set.DDPM_SWEPT_KEYS='schedule,optimizer.lr'",
    ]
    for steps in (1, 2):
        done = ddpm_here("train", *TINY, f"trainer.max_steps={steps}", *job)
        assert done.returncode == 0, done.stderr
    (run,) = runs(tmp_path).values()
    assert hyperparameters(run) == [{"schedule": "cosine", "optimizer.lr": 1e-3}] * 2
    assert EventAccumulator(str(run)).Reload().Scalars("val/bpd")


def start(folder: Path, *arguments: str, stdout: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "ddpm", "train", *arguments],
        cwd=folder,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ranks(folder: Path, seed: int) -> list[int]:
    """Process ids of the ranks that train in the run of a seed, rank 0 first."""
    path = runs(folder).get(seed, folder / "nothing") / "status.json"
    if not path.is_file():
        return []
    first = json.loads(path.read_text())["pid"]
    children = Path(f"/proc/{first}/task/{first}/children")
    found = children.read_text().split() if children.exists() else []
    return [first, *(int(pid) for pid in found if b"ddpm" in Path(f"/proc/{pid}/cmdline").read_bytes())]


@pytest.mark.slow
def test_a_dead_rank_fails_its_job_alone_and_a_dead_sweep_stops_its_job(tmp_path):
    """Two jobs of two processes each. kill -9 for a rank of the first job, then for the sweep during the second."""
    sweep = start(tmp_path, *TINY, "trainer.devices=2", "trainer.limit_val_batches=0", "trainer.max_steps=100000",
                  "seed=0,1", "-m")  # fmt: skip

    def wait_for_ranks(seed: int) -> list[int]:
        while len(pids := ranks(tmp_path, seed)) < 2:
            assert sweep.poll() is None
            time.sleep(0.1)
        time.sleep(3)
        return pids

    os.kill(wait_for_ranks(0)[1], signal.SIGKILL)
    pids = wait_for_ranks(1)
    sweep.kill()
    _, message = sweep.communicate(timeout=60)  # ends when the ranks have closed stderr
    assert "another process of this run has ended" in message
    assert re.search("seed=0: its process (was killed by SIGKILL|ended with exit code)", message)
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        time.sleep(0.1)  # until the timeout of the test
    assert states(tmp_path)[1] == "interrupted"


@pytest.mark.slow
def test_a_killed_sweep_ends_with_the_results_of_one_left_alone(ddpm_here, ddpm_cli, tmp_path):
    """kill -9 in the middle of the second job, and then the same command again."""
    grid = [*TINY, "trainer.max_steps=6", "checkpoint.every_steps=3", SIGNAL_AT_STEP]
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    undisturbed.mkdir()
    disturbed.mkdir()
    environment = from_sweep(5, "SIGKILL")
    alone = {"PYTHONPATH": environment["PYTHONPATH"]}
    for seed in (0, 1):
        assert ddpm_here("train", *grid, f"seed={seed}", cwd=undisturbed, env=alone).returncode == 0

    assert ddpm_here("train", *grid, "seed=0", cwd=disturbed, env=alone).returncode == 0
    sweep = ddpm_cli("train", *grid, "seed=0,1", "-m", cwd=disturbed, env=environment)
    assert sweep.returncode == -signal.SIGKILL, sweep.stderr
    assert states(disturbed) == {0: "finished", 1: "running"}
    done = ddpm_here("train", *grid, "seed=0,1", "-m", cwd=disturbed, env=alone)
    assert done.returncode == 0, done.stderr
    assert "Continuing from step 3" in done.stdout

    expected, found = runs(undisturbed), runs(disturbed)
    assert found.keys() == expected.keys()
    for seed, run in expected.items():
        assert differences(final_state(run), final_state(found[seed])) == []
