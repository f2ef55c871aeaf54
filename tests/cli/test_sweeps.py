"""A sweep of the toy command: it is checked before it starts, continues after failed jobs, and names them."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


def test_nothing_starts_unless_every_job_is_possible(ddpm_here, tmp_path):
    answer = ddpm_here("toy", "seed=1,2", "how=well,impossible", "-m")
    assert answer.returncode == 1
    assert "done with" not in answer.stdout
    assert "nothing was started" in answer.stderr
    assert "  seed=1 how=impossible: seed 1 is impossible\n  seed=2 how=impossible: seed 2 is" in answer.stderr
    assert "Traceback" not in answer.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["speed=slow,fats"], ["speed=fats: ", "Could not find 'speed/fats'"]),
        (["ckpt=a,b"], ["ckpt=a and ckpt=b are the same run, toys/well-0-1000"]),
        (["seed=interval(1,2)"], ["seed=interval(1,2): a grid needs a list of values", "hydra/sweeper=optuna"]),
    ],
)
def test_an_impossible_sweep_is_refused(ddpm_here, arguments, words):
    answer = ddpm_here("toy", *arguments, "-m")
    assert answer.returncode == 1
    assert all(word in answer.stderr for word in words), answer.stderr
    assert "Traceback" not in answer.stderr


def test_a_dry_run_says_what_would_happen(ddpm_here, tmp_path):
    for arguments in (["seed=1,2", "how=well,done", "-m"], ["how=well", "seed=2"]):
        answer = ddpm_here("toy", *arguments, "dry_run=true")
        assert answer.returncode == 0, answer.stderr
        assert "done with" not in answer.stdout
        assert "toys/well-2-1000" in answer.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_skips_finished_jobs_and_continues_after_failed_ones(ddpm_here, tmp_path):
    """Six jobs: two are finished before, one goes well, three fail."""
    answer = ddpm_here("toy", "seed=1,13", "how=well,mistaken,done", "hydra.sweeper.max_batch_size=3", "-m")
    assert answer.returncode == 1
    assert "2 of 6 jobs were finished before" in answer.stdout
    assert re.findall("Launching [0-9] jobs", answer.stdout) == ["Launching 3 jobs", "Launching 1 jobs"]
    assert re.findall(r"done with .*", answer.stdout) == ["done with 1000 steps, seed 1, swept seed,how"]
    # The error of a job appears once, and then the name of the job.
    assert answer.stderr.count("seed 1 cannot be halved") == 1
    assert "seed=1 how=mistaken: its process ended with exit code 1, see above\n" in answer.stderr
    assert answer.stderr.count("Traceback") == 1
    assert "ZeroDivisionError: seed 13\n" in answer.stderr
    last = answer.stderr.splitlines()[-1]
    assert last == "ddpm toy: 3 of 6 jobs failed: seed=1 how=mistaken; seed=13 how=well; seed=13 how=mistaken"
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def waiting_sweep(toy, environment, tmp_path):
    """A sweep of two jobs whose first job waits for a signal."""
    sweep = subprocess.Popen(
        [sys.executable, "-m", "ddpm", "toy", "--config-dir", toy / "conf", "how=waiting", "seed=1,2", "-m"],
        cwd=tmp_path, env=environment | {"PYTHONUNBUFFERED": "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip
    assert sweep.stdout is not None
    while "waiting" not in (line := sweep.stdout.readline()).split():
        assert line, "the sweep has ended"
    yield sweep
    sweep.kill()
    sweep.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_the_job_and_ends_the_sweep(waiting_sweep, tmp_path, number):
    waiting_sweep.send_signal(number)
    output, _ = waiting_sweep.communicate(timeout=60)
    assert waiting_sweep.returncode == 75, output
    assert "waiting" not in output.split()  # the second job was not started
    assert (tmp_path / "stopped").exists() == (number == signal.SIGTERM)


def test_a_job_stops_when_its_sweep_is_killed(waiting_sweep, tmp_path: Path):
    os.kill(waiting_sweep.pid, signal.SIGKILL)
    end = time.monotonic() + 30
    while not (tmp_path / "stopped").exists():
        assert time.monotonic() < end
        time.sleep(0.1)
