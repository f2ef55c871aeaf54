"""Searches with a real SQLite file: tiny networks, a few steps, each trial in a process of its own."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
import torch
import yaml
from killed_runs import SIGNAL_AT_STEP, from_sweep
from optuna.trial import TrialState

from ddpm.runs import Run, Status

TINY = [
    "data=mnist_mini", "model=unet_tiny", "model.channels=8", "schedule.num_steps=50", "trainer=cpu", "debug=fast",
    "data.batch_size=4", "logger=none",
]  # fmt: skip
SEARCH = ["train", "-m", "hydra/sweeper=optuna", *TINY]
LEARNING_RATE = "optimizer.lr=tag(log,interval(1e-4,1e-2))"


def trials(folder: Path) -> list[optuna.trial.FrozenTrial]:
    """The trials of the only study in a folder."""
    storage = f"sqlite:///{folder}/outputs/train/default/search.db"
    return optuna.load_study(study_name=None, storage=storage).get_trials()


def runs(folder: Path) -> dict[float, Path]:
    """The runs in a folder, by their learning rate."""
    configs = folder.glob("outputs/train/default/*/config.yaml")
    return {yaml.safe_load(file.read_text())["optimizer"]["lr"]: file.parent for file in configs}


def state(run: Path) -> str | None:
    status = Status.read(run)
    return status.state if status else None


def test_a_search_and_the_command_that_it_prints_for_the_best(ddpm_here, tmp_path):
    search = ddpm_here(*SEARCH, LEARNING_RATE, "hydra.sweeper.n_trials=1")
    assert search.returncode == 0, search.stderr
    (trial,) = trials(tmp_path)
    (run,) = runs(tmp_path).values()
    assert (trial.state, trial.value) == (TrialState.COMPLETE, Run.read(run).read_metrics()["val/bpd"])
    command = re.search(r"^  ddpm (train .*)$", search.stdout, re.MULTILINE)
    assert command is not None
    assert "already finished" in ddpm_here(*command[1].split()).stdout


def test_a_dry_run_of_the_named_search_writes_nothing(ddpm_here, tmp_path):
    answer = ddpm_here("train", "+sweep=search", *TINY, "dry_run=true")
    assert answer.returncode == 0, answer.stderr
    assert "0 of 20 trials done, 20 to go" in answer.stdout
    assert list(tmp_path.iterdir()) == []


def test_without_optuna_one_line_says_what_to_install(tmp_path):
    hide = "import sys; sys.modules['optuna'] = None; from ddpm.__main__ import main; main()"
    command = [sys.executable, "-c", hide, *SEARCH, LEARNING_RATE]
    answer = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert answer.returncode == 1
    assert len(answer.stderr.splitlines()) == 1
    assert "pip install -e '.[optuna]'" in answer.stderr


@pytest.mark.slow
def test_hopeless_trials_stop_early_and_can_be_continued(ddpm_here, tmp_path):
    """Two processes per run. Of two learning rates one learns nothing. Twenty images, so epochs end between checks."""
    common = [
        "data.validation_size=9980", "trainer.max_steps=12", "optimizer.warmup_steps=0", "ema.decay=0.5",
        "optimizer.lr=1e-7,1e-2",
    ]  # fmt: skip
    answer = ddpm_here(
        *SEARCH, *common, "hydra.sweeper.metric=val/loss", "hydra/sweeper/sampler=random", "hydra.sweeper.n_trials=3",
        "hydra.sweeper.pruner.n_startup_trials=1", "hydra.sweeper.pruner.n_warmup_steps=3", "trainer.devices=2",
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    good, bad = runs(tmp_path)[1e-2], runs(tmp_path)[1e-7]
    assert (state(good), state(bad)) == ("finished", "pruned")
    found = trials(tmp_path)
    assert len(found) == 3
    complete = [trial for trial in found if trial.state == TrialState.COMPLETE]
    assert {trial.params["optimizer.lr"] for trial in complete} == {"0.01"}
    pruned = [trial for trial in found if trial.state == TrialState.PRUNED]
    assert list(pruned[0].intermediate_values) == [2, 4]
    assert complete[0].intermediate_values[12] == complete[0].value == Run.read(good).read_metrics()["val/loss"]
    shown = ddpm_here("report", "runs=outputs/train/default")
    assert "pruned" in shown.stdout
    assert "behind the search's other trials" in shown.stdout

    assert "Continuing from step" in ddpm_here("train", *TINY, *common[:-1], "optimizer.lr=1e-7").stdout
    assert state(bad) == "finished"
    assert torch.load(bad / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 12


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "ddpm", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
def test_a_stopped_and_killed_search_ends_as_one_left_alone(ddpm_here, ddpm_cli, tmp_path):
    """SIGTERM for the search during its first trial; kill -9 for the search and its job during the second."""
    steps = ["trainer.max_steps=8", "trainer.val_check_interval=4", "checkpoint.every_steps=2", SIGNAL_AT_STEP]
    search = [*SEARCH, LEARNING_RATE, *steps, "hydra.sweeper.n_trials=2"]
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    for folder in (undisturbed, disturbed):
        folder.mkdir()
    term, kill = from_sweep(3, "SIGTERM"), from_sweep(3, "SIGKILL")
    alone = {"PYTHONPATH": term["PYTHONPATH"]}
    assert ddpm_here(*search, cwd=undisturbed, env=alone).returncode == 0

    stopped = ddpm_here(*search, cwd=disturbed, env=term)
    assert stopped.returncode == 75, stopped.stderr
    killed = ddpm_cli(*search, cwd=disturbed, env=kill)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert "Continuing from step 4" in killed.stdout
    shown = ddpm_here(*search, "dry_run=true", cwd=disturbed, env=alone)
    assert "1 of 2 trials done, 1 begun" in shown.stdout
    last = ddpm_here(*search, cwd=disturbed, env=alone)
    assert last.returncode == 0, last.stderr
    assert "Continuing from step 2" in last.stdout
    expected, found = trials(undisturbed), trials(disturbed)
    assert [(t.state, t.params, t.value) for t in found] == [(t.state, t.params, t.value) for t in expected]
    assert [t.intermediate_values for t in found] == [t.intermediate_values for t in expected]


@pytest.mark.slow
def test_several_workers_share_a_study_and_train_nothing_twice(ddpm_here, tmp_path):
    """Three trials of two choices, so a point comes again."""
    search = [*SEARCH, "optimizer.lr=1e-2,1e-3", "hydra.sweeper.n_trials=3"]
    worker = start(tmp_path, *search, "hydra.sweeper.n_jobs=2")
    here = ddpm_here(*search, "hydra.sweeper.n_jobs=1")
    screen, message = worker.communicate(timeout=600)
    assert [worker.returncode, here.returncode] == [0, 0], message + here.stderr
    found = trials(tmp_path)
    assert [trial.state for trial in found] == [TrialState.COMPLETE] * 3
    trained = re.findall(r"^Training: ", screen + here.stdout, re.MULTILINE)
    assert len(trained) == len(runs(tmp_path)) == len({trial.params["optimizer.lr"] for trial in found})
