import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock
from hand_made import make_run

from ddpm.errors import UserError
from ddpm.runs.collect import find_runs, read_curves, read_run, samples_over_time


@pytest.fixture
def runs(tmp_path):
    """a/one, a/deep/er/two, b/three, and an older a/one that restart=true moved aside."""
    names = ["a/one", "a/one.before-20260102-030405", "a/deep/er/two", "b/three"]
    return {name: make_run(tmp_path / name) for name in names}


def test_runs_are_found_at_any_depth_once(runs, tmp_path):
    (tmp_path / "a" / "not_a_run").mkdir()
    (tmp_path / "a" / "not_a_run" / "config.yaml").touch()
    make_run(runs["a/one"] / "copy")  # inside a run
    assert set(find_runs([tmp_path])) == {runs[name] for name in ("a/one", "a/deep/er/two", "b/three")}
    assert find_runs([runs["a/one"]]) == [runs["a/one"]]
    assert find_runs([tmp_path / "b", tmp_path / "a" / "deep", tmp_path / "b" / ".." / "b"]) == [
        runs["b/three"],
        runs["a/deep/er/two"],
    ]


def test_a_run_that_was_moved_aside_is_found_by_its_name_alone(runs):
    aside = runs["a/one.before-20260102-030405"]
    assert find_runs([aside]) == [aside]


def test_an_error_names_runs_nearby(runs, tmp_path, monkeypatch):
    (tmp_path / "b" / "gone").mkdir()
    (tmp_path / "b" / "gone" / "status.json").symlink_to(tmp_path / "nothing")
    os.utime(runs["b/three"] / "status.json", (2e9, 2e9))  # the newest comes first
    with pytest.raises(UserError, match=rf"no directory {tmp_path}/c; nearby: {tmp_path}/b, "):
        find_runs([tmp_path / "c"])
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match=r"no run in .*empty: no directory .* with status.json and config.yaml; nearby"):
        find_runs([empty])
    monkeypatch.chdir(tmp_path)  # the current folder may hold anything: it is not searched
    with pytest.raises(UserError, match=r"no directory c$"):
        find_runs([Path("c")])


def test_read_run(tmp_path):
    run = read_run(
        make_run(
            tmp_path / "run",
            "schedule=cosine",
            "seed=3",
            step=7,
            seconds=1.5,
            metrics={"val/bpd": 2.5, "val/loss": None, "step": 7},
            shade=0,
        )
    )
    assert (run.state, run.step, run.seconds, run.error) == ("finished", 7, 1.5, None)
    assert run.metrics == {"val/bpd": 2.5, "step": 7}  # null stands for NaN
    assert run.checkpoint == tmp_path / "run" / "checkpoints" / "best.ckpt"
    assert run.settings["schedule._target_"] == "ddpm.diffusion.schedules.cosine"
    assert run.settings["seed"] == 3
    assert run.settings["model.multipliers"] == "[1,2,2]"
    assert run.settings["callbacks.pictures.directory"] == "<run>/samples"  # the same wherever the run is
    left_out = ("paths", "not_identity", "trainer.max_steps", "logger", "callbacks.progress")
    assert [key for key in run.settings if key.startswith(left_out)] == []


def test_the_best_checkpoint_is_named_else_the_last(tmp_path):
    directory = make_run(tmp_path / "run")
    assert read_run(directory).checkpoint is None
    (directory / "checkpoints").mkdir()
    (directory / "checkpoints" / "last.ckpt").touch()
    assert read_run(directory).checkpoint == directory / "checkpoints" / "last.ckpt"
    (directory / "checkpoints" / "best.ckpt").touch()
    assert read_run(directory).checkpoint == directory / "checkpoints" / "best.ckpt"


@pytest.mark.parametrize("name", ["status.json", "metrics.json", "config.yaml"])
def test_a_damaged_file_is_named_and_the_others_are_read(tmp_path, name):
    directory = make_run(tmp_path / "run", metrics={"val/bpd": 1}, state="failed", error="out of memory")
    for damage in (b"", b"{", b"[1]", b"\xff", b"null"):
        (directory / name).write_bytes(damage)
        run = read_run(directory)
        error = f"{name} cannot be read"
        assert run.error == (error if name == "status.json" else f"out of memory\n{error}"), damage
        assert run.state == ("unreadable" if name == "status.json" else "failed"), damage
        assert run.metrics == ({} if name == "metrics.json" else {"val/bpd": 1}), damage
        assert bool(run.settings) == (name != "config.yaml"), damage


def test_values_of_a_wrong_type_are_ignored(tmp_path):
    directory = make_run(
        tmp_path / "run", state=[1], step="7", seconds=True, metrics={"val/bpd": "low", "val/loss": float("nan")}
    )
    (directory / "config.yaml").write_text("paths: 3\nseed: 1")
    run = read_run(directory)
    assert (run.state, run.step, run.seconds, run.metrics, run.settings) == ("unreadable", None, None, {}, {})


def test_a_missing_directory_is_absent(tmp_path):
    run = read_run(tmp_path / "nowhere")
    assert (run.state, run.step, run.error, run.settings) == ("absent", None, None, {})
    assert read_curves(tmp_path / "nowhere", ["val/bpd"]) == {}
    assert samples_over_time(tmp_path / "nowhere", 3) == []


def test_a_running_state_without_a_process_is_stopped(tmp_path):
    directory = make_run(tmp_path / "run", state="running", host=socket.gethostname())
    with FileLock(directory / ".lock"):
        assert read_run(directory).state == "running"
    assert read_run(directory).state == "killed"
    elsewhere = make_run(tmp_path / "other", state="running", host="another-machine")
    assert read_run(elsewhere).state == "running"


def test_read_curves(tmp_path):
    points = [(step, 1 / (step + 1)) for step in range(12_000)]  # TensorBoard would keep 10,000 by default
    directory = make_run(tmp_path / "run", curves={"val/bpd": points, "other": [(0, 1)]})
    curves = read_curves(directory, ["val/bpd", "val/loss"])
    assert list(curves) == ["val/bpd"]
    assert curves["val/bpd"].steps == [step for step, _ in points]
    assert curves["val/bpd"].values == pytest.approx([value for _, value in points])


def test_incomplete_events_give_the_complete_part(tmp_path):
    directory = make_run(tmp_path / "run", curves={"val/bpd": [(step, 1.0) for step in range(10)]})
    (events,) = directory.glob("events*")
    os.truncate(events, events.stat().st_size - 3)
    assert read_curves(directory, ["val/bpd"])["val/bpd"].steps == list(range(9))
    events.write_bytes(b"nonsense" * 20)
    assert read_curves(directory, ["val/bpd"]) == {}


def test_samples_over_time_are_complete_and_closer_together_at_the_start(tmp_path):
    directory = make_run(tmp_path / "run", shade=9, step=5)
    whole = (directory / "samples" / "samples-step-0000005.png").read_bytes()
    (directory / "samples" / "samples-step-0000006.png").write_bytes(whole[: len(whole) // 2])
    (directory / "samples" / "samples-step-0000007.png").touch()
    (directory / "samples" / "trajectories-step-0000008.png").write_bytes(whole)
    assert samples_over_time(directory, 1) == [(5, whole)]
    for step in range(5):
        (directory / "samples" / f"samples-step-{step:07d}.png").write_bytes(whole)
    assert [found.step for found in samples_over_time(directory, 3)] == [0, 1, 5]
    assert [found.step for found in samples_over_time(directory, 100)] == [0, 1, 2, 3, 4, 5]


def test_it_imports_no_torch():
    code = "import sys, ddpm.runs.collect, ddpm.runs.compare, ddpm.commands.report; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
