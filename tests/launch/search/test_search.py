"""Searches with the real CLI and a real SQLite file: tiny networks, a few steps."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
import torch
import yaml
from optuna.trial import TrialState

from ddpm.runs import Run, Status

TINY = [
    "data=mnist_mini", "model=unet_tiny", "model.channels=8", "schedule.num_steps=50", "trainer=cpu", "debug=fast",
    "data.batch_size=4", "logger=none",
]  # fmt: skip
SEARCH = ["train", "-m", "hydra/sweeper=optuna", *TINY]
LEARNING_RATE = "optimizer.lr=tag(log,interval(1e-4,1e-2))"


def trials(folder: Path) -> list[optuna.trial.FrozenTrial]:
    """Those of the one study in a folder."""
    storage = f"sqlite:///{folder}/outputs/train/default/search.db"
    return optuna.load_study(study_name=None, storage=storage).get_trials()


def runs(folder: Path) -> dict[float, Path]:
    """The runs in a folder, by their learning rate."""
    configs = folder.glob("outputs/train/default/*/config.yaml")
    return {yaml.safe_load(file.read_text())["optimizer"]["lr"]: file.parent for file in configs}


def state(run: Path) -> str | None:
    status = Status.read(run)
    return status.state if status else None


def test_a_metric_that_no_run_has_ends_the_search_at_its_first_trial(ddpm_cli, tmp_path):
    answer = ddpm_cli(*SEARCH, LEARNING_RATE, "hydra.sweeper.n_trials=3", "hydra.sweeper.metric=val/bdp")
    assert answer.returncode == 1
    assert "hydra.sweeper.metric=val/bdp is not among what a run measures: " in answer.stderr
    assert "val/bpd" in answer.stderr
    assert answer.stdout.count("Launching") == 1


def test_a_run_that_has_made_more_steps_than_the_search_s_is_no_trial_of_it(ddpm_cli, tmp_path):
    assert ddpm_cli("train", *TINY, "seed=1", "trainer.max_steps=4").returncode == 0
    answer = ddpm_cli(*SEARCH, "seed=1,2", "trainer.max_steps=2", "hydra.sweeper.n_trials=3")
    assert answer.returncode == 1
    assert "its run has made 4 steps, more than this search's do" in answer.stderr
    states = {(trial.params["seed"], trial.state) for trial in trials(tmp_path)}
    assert states <= {(1, TrialState.FAIL), (2, TrialState.COMPLETE)}


def test_a_search_goes_on_up_to_its_total(ddpm_cli, tmp_path):
    first = ddpm_cli(*SEARCH, LEARNING_RATE, "hydra.sweeper.n_trials=2")
    assert first.returncode == 0, first.stderr
    assert first.stdout.count("Launching") == 2
    assert "2 of 2 trials done" in first.stdout
    best = min(trials(tmp_path), key=lambda trial: trial.value)
    assert re.search(rf"The best is optimizer.lr={best.params['optimizer.lr']:.2g}\d*: val/bpd", first.stdout)
    command = re.search(r"^  ddpm (train .*)$", first.stdout, re.MULTILINE)
    assert command is not None
    assert f"optimizer.lr={best.params['optimizer.lr']:.3g}" in command[1]
    assert "finished before" in ddpm_cli(*command[1].split()).stdout

    again = ddpm_cli(*SEARCH, LEARNING_RATE, "hydra.sweeper.n_trials=2")
    assert again.returncode == 0
    assert "Launching" not in again.stdout

    more = ddpm_cli(*SEARCH, LEARNING_RATE, "hydra.sweeper.n_trials=3")
    assert more.stdout.count("Launching") == 1
    found = trials(tmp_path)
    assert [trial.state for trial in found] == [TrialState.COMPLETE] * 3
    assert {Run.read(run).read_metrics()["val/bpd"] for run in runs(tmp_path).values()} == {t.value for t in found}


def test_nothing_starts_unless_every_corner_can_be_and_a_dry_run_leaves_no_trace(ddpm_cli, tmp_path):
    answer = ddpm_cli(*SEARCH, LEARNING_RATE, "schedule.num_steps=50,5", "optimizer.algorithm.weight_decay=0.0,-1.0")
    assert answer.returncode == 1
    assert "nothing was started" in answer.stderr
    assert "schedule.num_steps=5 optimizer.lr=0.0001 optimizer.algorithm.weight_decay=0.0: linear" in answer.stderr
    assert "optimizer.lr=0.0001 optimizer.algorithm.weight_decay=-1.0: optimizer: Invalid weight_dec" in answer.stderr
    answer = ddpm_cli(*SEARCH, "trainer.max_steps=5,6")
    assert "trainer.max_steps=5 and trainer.max_steps=6 are the same run" in answer.stderr
    answer = ddpm_cli("train", "+sweep=search", *TINY, "model.channels=8,16", "dry_run=true")
    assert answer.returncode == 0, answer.stderr
    assert "0 of 20 trials done, 20 to go" in answer.stdout
    assert list(tmp_path.iterdir()) == []


def test_without_optuna_one_line_says_what_to_install(tmp_path):
    hide = (
        "import sys, hydra_plugins; from pathlib import Path; import hydra_plugins.ddpm_sweeper as ours;"
        "hydra_plugins.__path__ = [str(Path(ours.__file__).parent)]; sys.modules['optuna'] = None;"
        "from ddpm.__main__ import main; main()"
    )
    command = [sys.executable, "-c", hide, *SEARCH, LEARNING_RATE]
    answer = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert answer.returncode == 1
    assert len(answer.stderr.splitlines()) == 1
    assert "pip install -e '.[optuna]'" in answer.stderr


BOMB = """\
import lightning as L

class Bomb(L.Callback):
    def __init__(self, goes_off):
        self.goes_off = goes_off

    def on_train_start(self, *args):
        if self.goes_off:
            raise ZeroDivisionError("bang")
"""


@pytest.mark.slow
def test_failed_trials_are_named_and_the_next_launch_has_others_in_their_place(ddpm_cli, tmp_path):
    (tmp_path / "bomb.py").write_text(BOMB)
    bomb = ["+callbacks.bomb._target_=bomb.Bomb", "+callbacks.bomb.goes_off=true,false", LEARNING_RATE]
    search = [*SEARCH, *bomb, "hydra/sweeper/sampler=random", "hydra.sweeper.n_trials=4"]
    env = {"PYTHONPATH": str(tmp_path)}
    first = ddpm_cli(*search, env=env)
    assert first.returncode == 1
    failed = [trial.number for trial in trials(tmp_path) if trial.state == TrialState.FAIL]
    assert 0 < len(failed) < 4
    assert f"{len(failed)} trials failed" in first.stderr
    assert f"trial {failed[0]}: +callbacks.bomb.goes_off=True optimizer.lr=" in first.stderr
    assert "ZeroDivisionError: bang" in first.stderr
    for _ in range(10):
        again = ddpm_cli(*search, env=env)
        if again.returncode == 0:
            break
    complete = [trial for trial in trials(tmp_path) if trial.state == TrialState.COMPLETE]
    assert len(complete) == 4
    assert not any(trial.params["+callbacks.bomb.goes_off"] for trial in complete)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_hopeless_trials_stop_early_and_can_be_trained_on(devices, ddpm_cli, tmp_path):
    """Two learning rates, of which one learns nothing; twenty images, so that epochs end in between."""
    common = [
        "data.validation_size=9980", "trainer.max_steps=12", "optimizer.warmup_steps=0", "ema.decay=0.5",
        f"trainer.devices={devices}", "optimizer.lr=1e-7,1e-2",
    ]  # fmt: skip
    search = [
        *SEARCH, *common, "hydra.sweeper.metric=val/loss", "hydra/sweeper/sampler=random", "hydra.sweeper.n_trials=6",
        "hydra.sweeper.pruner.n_startup_trials=1", "hydra.sweeper.pruner.n_warmup_steps=3",
    ]  # fmt: skip
    answer = ddpm_cli(*search)
    assert answer.returncode == 0, answer.stderr
    good, bad = runs(tmp_path)[1e-2], runs(tmp_path)[1e-7]
    assert (state(good), state(bad)) == ("finished", "pruned")
    found = trials(tmp_path)
    assert len(found) == 6
    assert {trial.params["optimizer.lr"] for trial in found if trial.state == TrialState.COMPLETE} == {1e-2}
    pruned = [trial for trial in found if trial.state == TrialState.PRUNED]
    assert list(pruned[0].intermediate_values) == [2, 4]
    first = next(trial for trial in found if trial.state == TrialState.COMPLETE)
    assert first.intermediate_values[12] == first.value == Run.read(good).read_metrics()["val/loss"]
    shown = ddpm_cli("report", "runs=outputs/train/default")
    assert "pruned" in shown.stdout
    assert "behind the search's other trials" in shown.stdout

    alone = tmp_path / "alone"
    alone.mkdir()
    plain = ["train", *TINY, *common[:-1], "optimizer.lr=1e-7"]
    assert "Continuing from step" in ddpm_cli(*plain).stdout
    assert ddpm_cli(*plain, cwd=alone).returncode == 0
    ends = [torch.load(run / "checkpoints/last.ckpt", weights_only=True) for run in (bad, *runs(alone).values())]
    assert [end["global_step"] for end in ends] == [12, 12]
    assert all(torch.equal(ends[0]["state_dict"][key], tensor) for key, tensor in ends[1]["state_dict"].items())
    if devices == 2:  # both trained the same point
        once = ddpm_cli(*plain, "trainer.devices=1", "restart=true", cwd=alone)
        assert once.returncode == 0, once.stderr
        metrics = [Run.read(run).read_metrics()["val/loss"] for run in (bad, *runs(alone).values())]
        assert metrics[0] == pytest.approx(metrics[1], rel=1e-3)


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "ddpm", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for_training(process: subprocess.Popen[str], folder: Path, trained: int) -> None:
    """Until so many runs are finished, and a further one has a checkpoint."""
    while process.poll() is None:
        found = [state(run) for run in runs(folder).values() if (run / "checkpoints" / "last.ckpt").exists()]
        if sorted(map(str, found)) == ["finished"] * trained + ["running"]:
            return
        time.sleep(0.02)
    raise AssertionError(process.communicate())


@pytest.mark.slow
def test_a_killed_search_ends_as_one_left_alone(ddpm_cli, tmp_path):
    steps = ["trainer.max_steps=40", "trainer.val_check_interval=20", "checkpoint.every_steps=5"]
    search = [*SEARCH, LEARNING_RATE, *steps, "hydra.sweeper.n_trials=4"]
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    for folder in (undisturbed, disturbed):
        folder.mkdir()
    assert ddpm_cli(*search, cwd=undisturbed).returncode == 0

    for trained in (1, 2):
        process = start(disturbed, *search)
        wait_for_training(process, disturbed, trained)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    shown = ddpm_cli(*search, "dry_run=true", cwd=disturbed)
    assert "2 of 4 trials done, 1 begun, 1 to go" in shown.stdout, shown.stdout
    last = ddpm_cli(*search, cwd=disturbed)
    assert last.returncode == 0, last.stderr
    assert "Continuing from step" in last.stdout
    expected, found = trials(undisturbed), trials(disturbed)
    assert [(t.state, t.params, t.value) for t in found] == [(t.state, t.params, t.value) for t in expected]
    assert [t.intermediate_values for t in found] == [t.intermediate_values for t in expected]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_search_that_is_asked_to_stop_saves_and_goes_on_by_the_same_command(number, ddpm_cli, tmp_path):
    steps = ["trainer.max_steps=400", "trainer.val_check_interval=200", "checkpoint.every_steps=100"]
    search = [*SEARCH, LEARNING_RATE, *steps, "hydra.sweeper.n_trials=2"]
    process = start(tmp_path, *search)
    wait_for_training(process, tmp_path, 1)
    process.send_signal(number)
    _, message = process.communicate(timeout=60)
    assert process.returncode == 75, message
    assert [trial.state for trial in trials(tmp_path)] == [TrialState.COMPLETE, TrialState.RUNNING]
    again = ddpm_cli(*search)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("Launching") == 1
    assert "Continuing from step" in again.stdout
    assert [trial.state for trial in trials(tmp_path)] == [TrialState.COMPLETE] * 2


@pytest.mark.slow
def test_several_workers_share_a_study_and_train_nothing_twice(tmp_path):
    """Six trials of an interval, and six of a choice of three, where points come again and again."""
    for space in (LEARNING_RATE, "optimizer.lr=1e-2,1e-3,1e-4"):
        folder = tmp_path / space.replace("/", "")[:20]
        folder.mkdir()
        search = [*SEARCH, space, "hydra.sweeper.n_trials=6", "trainer.max_steps=20"]
        workers = [start(folder, *search, f"hydra.sweeper.n_jobs={jobs}") for jobs in (1, 2)]
        told = [worker.communicate(timeout=600) for worker in workers]
        assert [worker.returncode for worker in workers] == [0, 0], told
        found = trials(folder)
        assert [trial.state for trial in found] == [TrialState.COMPLETE] * 6
        trained = re.findall(r"^Training: ", "".join(out for out, _ in told), re.MULTILINE)
        assert len(trained) == len(runs(folder)) == len({trial.params["optimizer.lr"] for trial in found})
