"""A search with a launcher that starts no process: it writes the files of each run."""

import json
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from omegaconf import OmegaConf
from optuna.trial import TrialState

from ddpm.config import conf_dir
from ddpm.errors import UserError
from ddpm.launch.search.trials import Search, run_search
from ddpm.runs import Run, run_directory

TINY = [
    "data=mnist_mini", "model=unet_tiny", "model.channels=8", "schedule.num_steps=50", "trainer=cpu", "debug=fast",
    "trainer.max_steps=2", "logger=none",
]  # fmt: skip
LEARNING_RATE = "optimizer.lr=tag(log,interval(1e-4,1e-2))"


class HandLauncher(Launcher):
    """Writes the result(job) -> (state, step, metrics) of each job; for a failed job `metrics` is the error."""

    def __init__(self, result: Callable):
        self.result = result
        self.jobs: list[list[str]] = []

    def setup(self, **context): ...

    def launch(self, job_overrides, initial_job_idx):
        assert initial_job_idx == len(self.jobs)
        self.jobs += [list(job) for job in job_overrides]
        return [self.finish(list(job)) for job in job_overrides]

    def finish(self, job):
        state, step, metrics = self.result(job)
        task = [override for override in job if not override.startswith("hydra.")]
        config = compose("train", task)
        directory = run_directory("train", "outputs", task, None, config.not_identity)
        directory.mkdir(parents=True, exist_ok=True)
        config.paths.run = str(directory)
        OmegaConf.save(config, directory / "config.yaml", resolve=True)
        failed = state in ("failed", "interrupted")
        (directory / "status.json").write_text(
            json.dumps({"state": state, "step": step, "error": metrics if state == "failed" else None})
        )
        if not failed:
            (directory / "metrics.json").write_text(json.dumps({"step": step, **metrics}))
        result = JobReturn(status=JobStatus.FAILED if failed else JobStatus.COMPLETED)
        result.return_value = UserError("failed") if failed else None
        return result


@pytest.fixture
def search_here(tmp_path, monkeypatch):
    """`search_here(*overrides, result=…) -> launcher` runs a search; `.study(*overrides)` gives its study."""
    monkeypatch.chdir(tmp_path)

    @contextmanager
    def composed(overrides):
        arguments = [*TINY, *overrides]
        parsed = OverridesParser.create().parse_overrides(arguments)
        fixed = [str(o.input_line) for o in parsed if not o.is_sweep_override()]
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            config = compose("train", ["hydra/sweeper=optuna", *fixed], return_hydra_config=True)
            loader = GlobalHydra.instance().config_loader()
            yield config, [o for o in parsed if not o.is_hydra_override()], loader

    def search_here(*overrides, result=lambda job: ("finished", 2, {"val/bpd": 1.0})):
        with composed(overrides) as (config, parsed, loader):
            launcher = HandLauncher(result)
            run_search(config, parsed, loader, launcher)
        return launcher

    def study(*overrides):
        with composed(overrides) as (config, parsed, loader):
            return Search(config, parsed, loader).study

    search_here.study = study
    return search_here


def value(job: list[str], key: str) -> str:
    return next(override for override in job if override.startswith(f"{key}=")).partition("=")[2]


def test_a_search_trains_n_trials_and_names_the_best(search_here, capsys):
    def result(job):
        return "finished", 2, {"val/bpd": float(value(job, "optimizer.lr"))}

    launcher = search_here(LEARNING_RATE, "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=2", result=result)
    assert len(launcher.jobs) == 3
    job = launcher.jobs[1]
    assert "hydra.job.env_set.DDPM_SWEPT_KEYS='optimizer.lr'" in job
    (callback,) = (override for override in job if override.startswith("+callbacks.pruning="))
    assert callback.endswith(",number:1}")
    output = capsys.readouterr().out
    best = min((value(job, "optimizer.lr") for job in launcher.jobs), key=float)
    assert f"The best is optimizer.lr={best}: val/bpd {float(best):.4g}" in output
    assert f"ddpm train {' '.join(TINY)} optimizer.lr={best}\n" in output.replace("\n  ", "\n").replace("  ", " ")

    assert search_here(LEARNING_RATE, "hydra.sweeper.n_trials=3").jobs == []
    assert len(search_here(LEARNING_RATE, "hydra.sweeper.n_trials=4", result=result).jobs) == 1
    trials = search_here.study(LEARNING_RATE).trials()
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 4


def test_failed_trials_are_named_and_the_next_launch_replaces_them(search_here):
    def fails(job):
        return "failed", 0, "bang"

    with pytest.raises(UserError, match=r"2 trials failed; the same .*\n  trial 0: optimizer.lr=\S+: bang\n  trial 1"):
        search_here(LEARNING_RATE, "hydra.sweeper.n_trials=2", result=fails)
    assert len(search_here(LEARNING_RATE, "hydra.sweeper.n_trials=2").jobs) == 2
    states = [trial.state for trial in search_here.study(LEARNING_RATE).trials()]
    assert states == [TrialState.FAIL] * 2 + [TrialState.COMPLETE] * 2


def test_an_interrupted_trial_ends_the_search_and_is_continued(search_here, capsys):
    search = [LEARNING_RATE, "hydra.sweeper.n_trials=2"]
    with pytest.raises(SystemExit, match="75"):
        search_here(*search, result=lambda job: ("interrupted", 1, {}))
    assert [trial.state for trial in search_here.study(*search).trials()] == [TrialState.RUNNING]
    search_here(*search, "dry_run=true")
    assert "0 of 2 trials done, 1 begun, 1 to go" in capsys.readouterr().out
    jobs = search_here(*search).jobs
    assert len(jobs) == 2
    assert [trial.state for trial in search_here.study(*search).trials()] == [TrialState.COMPLETE] * 2


def test_pruned_and_diverged_trials_count_as_done(search_here, capsys):
    results = iter([("pruned", 1, {}), ("finished", 2, {"val/bpd": None})])
    search_here("seed=1,2,3,4", "hydra.sweeper.n_trials=2", "hydra/sweeper/sampler=random",
                "hydra.sweeper.sampler.seed=3", result=lambda job: next(results))  # fmt: skip
    assert "2 of 2 trials done, 2 of them stopped early" in capsys.readouterr().out


def test_a_metric_that_no_run_has_ends_the_search_at_its_first_trial(search_here):
    with pytest.raises(UserError, match=r"hydra.sweeper.metric=val/bdp is not a metric of the run; it has step, val/"):
        search_here(LEARNING_RATE, "hydra.sweeper.n_trials=3", "hydra.sweeper.metric=val/bdp")


def test_a_run_with_more_steps_than_the_search_needs_is_refused(search_here):
    with pytest.raises(UserError, match="its run has made 4 steps, this search asks for 2"):
        search_here(LEARNING_RATE, "hydra.sweeper.n_trials=1", result=lambda job: ("finished", 4, {"val/bpd": 1.0}))


def test_a_trial_that_was_pruned_before_its_search_was_killed_is_not_trained_again(search_here):
    def killed(job):
        launcher.finish(job)
        study.report(0, 2, 1.0)
        raise KeyboardInterrupt

    search = [LEARNING_RATE, "hydra.sweeper.n_trials=1"]
    study = search_here.study(*search)
    launcher = HandLauncher(lambda job: ("pruned", 2, {}))
    with pytest.raises(KeyboardInterrupt):
        search_here(*search, result=killed)
    assert search_here(*search).jobs == []
    assert [trial.state for trial in study.trials()] == [TrialState.PRUNED]


def test_a_run_held_by_another_process_is_skipped(search_here):
    """Two choices. Another process holds the run of the first trial all the time."""
    search = ["seed=1,2", "hydra.sweeper.n_trials=4", "hydra/sweeper/sampler=random"]
    with pytest.raises(SystemExit):
        search_here(*search, result=lambda job: ("interrupted", 1, {}))
    (file,) = Path("outputs/train/default").glob("*/status.json")
    with Run.open(file.parent):
        jobs = search_here(*search).jobs
    first, *_ = search_here.study(*search).trials()
    assert first.state == TrialState.RUNNING
    assert len({value(job, "seed") for job in jobs} - {first.params["seed"]}) == len(jobs) == 1


def test_nothing_starts_unless_every_corner_is_possible(search_here, tmp_path):
    with pytest.raises(UserError) as error:
        search_here(LEARNING_RATE, "schedule.num_steps=50,5", "optimizer.algorithm.weight_decay=0.0,-1.0")
    assert "nothing was started" in str(error.value)
    assert "schedule.num_steps=5 optimizer.lr=0.0001 optimizer.algorithm.weight_decay=0.0: linear" in str(error.value)
    assert "weight_decay=-1.0: optimizer: Invalid weight_dec" in str(error.value)
    with pytest.raises(UserError, match=r"max_steps=5 and trainer\.max_steps=6 are the same run"):
        search_here("trainer.max_steps=5,6")
    assert list(tmp_path.iterdir()) == []
