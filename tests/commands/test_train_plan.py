"""What a run would do, told from its directory."""

import io
import zipfile

import pytest

from ddpm.commands.train import plan_training
from ddpm.runs import Run


def archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("data", "weights")
    return buffer.getvalue()


@pytest.fixture
def directory(tmp_path):
    """A run with a checkpoint, finished at step 10."""
    directory = tmp_path / "outputs" / "train" / "default" / "base"
    with Run.open(directory) as run:
        run.write_checkpoint(run.checkpoints / "last.ckpt", archive())
        run.end("finished", 10)
    return directory


def test_a_new_run_begins_and_nothing_is_made(tmp_path):
    assert plan_training(tmp_path / "new", 10).what == "start"
    assert list(tmp_path.iterdir()) == []


def test_a_finished_run_is_done_unless_more_steps_are_asked_for(directory):
    assert plan_training(directory, 10).is_done
    more = plan_training(directory, 11)
    assert not more.is_done
    assert more.what == "continue from its last checkpoint (finished at step 10)"


@pytest.mark.parametrize("state", ["interrupted", "failed", "running"])
def test_a_broken_run_goes_on(directory, state):
    Run.read(directory).end(state, 7)
    assert plan_training(directory, 10).what == f"continue from its last checkpoint ({state} at step 7)"


def test_a_run_that_failed_before_its_first_checkpoint_begins_again(directory):
    for path in (directory / "checkpoints").iterdir():
        path.unlink()
    Run.read(directory).end("failed", 0)
    assert "start from step 0" in plan_training(directory, 10).what


def test_a_restart_moves_the_run_aside(directory):
    assert "aside" in plan_training(directory, 10, restart=True).what


def test_a_run_in_which_somebody_trains_is_refused(directory):
    with Run.open(directory):
        assert "another process" in plan_training(directory, 10).what
