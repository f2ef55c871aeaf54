"""What `ddpm train` would do, from the state of the run's directory."""

import io

import pytest
import torch

from ddpm.commands.train import plan_training
from ddpm.runs import Run
from ddpm.runs.checkpoints import FORMAT


def archive(step: int) -> bytes:
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, "global_step": step, "state_dict": {}}, buffer)
    return buffer.getvalue()


@pytest.fixture
def directory(tmp_path):
    """A run with a checkpoint, finished at step 10."""
    directory = tmp_path / "outputs" / "train" / "default" / "base"
    with Run.open(directory) as run:
        for step in (5, 10):
            run.write_checkpoint(run.checkpoints / "last.ckpt", archive(step))
        run.end("finished", 10)
    return directory


def test_a_new_run_starts_and_nothing_is_written(tmp_path):
    assert plan_training(tmp_path / "new", 10).what == "start"
    assert list(tmp_path.iterdir()) == []


def test_a_finished_run_is_done_unless_it_needs_more_steps(directory):
    assert plan_training(directory, 10).is_done
    more = plan_training(directory, 11)
    assert not more.is_done
    assert more.what == "continue from its last checkpoint (finished at step 10)"


def test_a_finished_run_continues_if_its_last_checkpoint_is_damaged(directory):
    last = directory / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-50])
    assert not plan_training(directory, 10).is_done


@pytest.mark.parametrize("state", ["interrupted", "failed", "running"])
def test_a_run_that_did_not_finish_continues(directory, state):
    Run.read(directory).end(state, 7)
    assert plan_training(directory, 10).what == f"continue from its last checkpoint ({state} at step 7)"


def test_a_run_without_a_checkpoint_starts_again(directory):
    for path in (directory / "checkpoints").iterdir():
        path.unlink()
    Run.read(directory).end("failed", 0)
    assert "start from step 0" in plan_training(directory, 10).what


def test_a_restart_moves_the_run_aside(directory):
    assert "aside" in plan_training(directory, 10, restart=True).what


def test_a_run_held_by_another_process_is_refused(directory):
    with Run.open(directory):
        assert "another process" in plan_training(directory, 10).what
