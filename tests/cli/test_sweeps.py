"""A sweep is checked before it starts, goes on past jobs that fail, and names them; with a toy command."""

import re


def test_nothing_starts_unless_every_job_can_be(run, tmp_path):
    answer = run("ddpm", "toy", "seed=1,2", "how=well,impossible", "-m")
    assert answer.returncode == 1
    assert "done with" not in answer.stdout
    assert "nothing was started" in answer.stderr
    assert "  seed=1 how=impossible: seed 1 is impossible\n  seed=2 how=impossible: seed 2 is" in answer.stderr
    assert "Traceback" not in answer.stderr
    assert list((tmp_path / "work").iterdir()) == []


def test_a_key_that_only_some_jobs_lack_stops_the_sweep(run):
    answer = run("ddpm", "toy", "seed=1", "speed=slow,fats", "-m")
    assert answer.returncode == 1
    assert "done with" not in answer.stdout
    assert "speed=fats: " in answer.stderr
    assert "Could not find 'speed/fats'" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_two_jobs_that_would_be_the_same_run_are_refused(run):
    answer = run("ddpm", "toy", "seed=1", "ckpt=a,b", "-m")
    assert answer.returncode == 1
    assert "ckpt=a and ckpt=b are the same run, toys/well-1-1000" in answer.stderr


def test_jobs_that_are_done_are_left_out(run):
    answer = run("ddpm", "toy", "seed=1,2", "how=well,done", "-m")
    assert answer.returncode == 0, answer.stderr
    assert re.findall(r"done with 1000 steps, seed (\d+)", answer.stdout) == ["1", "2"]
    assert "Launching 2 jobs" in answer.stdout


def test_batches_of_jobs_go_on_past_failures(run):
    answer = run("ddpm", "toy", "seed=1,13,3", "hydra.sweeper.max_batch_size=1", "-m")
    assert answer.returncode == 1
    assert re.findall(r"done with 1000 steps, seed (\d+)", answer.stdout) == ["1", "3"]
    assert answer.stderr.endswith("ddpm toy: 1 of 3 jobs failed: seed=13\n")


def test_a_dry_run_says_what_would_happen_and_leaves_no_trace(run, tmp_path):
    for arguments in (["seed=1,2", "how=well,done", "-m"], ["how=well", "seed=2"]):
        answer = run("ddpm", "toy", *arguments, "dry_run=true")
        assert answer.returncode == 0, answer.stderr
        assert "done with" not in answer.stdout
        assert "toys/well-2-1000" in answer.stdout
    assert list((tmp_path / "work").iterdir()) == []


def test_a_job_of_a_sweep_knows_which_keys_vary(run):
    answer = run("ddpm", "toy", "seed=1,2", "how=well", "speed=slow,fast", "how=telling", "-m")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.count("swept: seed,speed\n") == 4
