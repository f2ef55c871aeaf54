"""`ddpm train` on the embedded MNIST: a network of 8 channels, 50 timesteps, a few steps."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from command_line import run_here
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from ddpm.runs import Status
from ddpm.training import load_model

TINY = ["data=mnist_mini", "model=unet_tiny", "model.channels=8", "schedule.num_steps=50"]
FAST = [*TINY, "debug=fast"]  # 4 steps


def train(cwd, *overrides):
    return run_here("train", *overrides, cwd=cwd)


def finished(answer):
    assert answer.returncode == 0, answer.stderr
    assert "Warning" not in answer.stderr
    return answer.stdout


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The output of one run of `debug=fast`, and the folder with outputs/."""
    folder = tmp_path_factory.mktemp("train")
    return finished(train(folder, *FAST)), folder


@pytest.fixture(scope="module")
def run(done) -> Path:
    (run,) = (done[1] / "outputs" / "train" / "default").iterdir()
    return run


@pytest.fixture
def again(done, tmp_path) -> Path:
    """A copy of that folder, in which the run may continue."""
    return shutil.copytree(done[1], tmp_path / "again")


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def listed_files(shown):
    """The files listed below "Results in"."""
    lines = shown.partition("Results in")[2].partition("Next")[0].splitlines()[1:]
    return [line.split(":")[0].strip() for line in lines]


def test_the_screen_shows_the_results_and_the_next_commands(done, run):
    shown, folder = done
    path = run.relative_to(folder)
    assert f"Results in {path}\n" in shown
    assert "val/bpd" in shown
    assert f"  ddpm sample ckpt={path}\n" in shown
    assert f"  ddpm evaluate ckpt={path}\n" in shown
    listed = listed_files(shown)
    assert {"samples/samples-step-0000004.png", "checkpoints/last.ckpt", "checkpoints/best.ckpt"} <= set(listed)
    assert all((run / name).is_file() for name in listed)


def test_the_files_of_a_run_say_its_config_state_and_numbers(run):
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["image_channels"] == 1  # resolved
    assert config["schedule"]["num_steps"] == 50
    status = Status.read(run)
    assert status is not None
    assert (status.state, status.step, status.error) == ("finished", 4, None)
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["step"] == 4
    assert {"train/loss", "val/loss", "val/bpd"} <= metrics.keys()
    provenance = json.loads((run / "provenance.json").read_text())
    assert {"git", "versions", "device", "command_line"} <= provenance.keys()
    assert "debug=fast" in provenance["overrides"]


def test_a_run_has_its_last_and_its_best_checkpoint(run):
    for name in ("best", "last"):
        checkpoint = torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)
        assert checkpoint["hyper_parameters"]["config"] == yaml.safe_load((run / "config.yaml").read_text())
    assert checkpoint["global_step"] == 4
    assert load_model(run / "checkpoints" / "best.ckpt").sample(1, seed=0).shape == (1, 1, 28, 28)


def test_pictures_of_each_validation(run):
    sizes = {}
    for path in (run / "samples").iterdir():
        with Image.open(path) as picture:
            picture.load()
            sizes[path.name] = picture.size
    side = {cells: cells * 86 + 2 for cells in (2, 8, 10)}
    assert sizes == {
        "samples-step-0000002.png": (side[2], side[2]),
        "samples-step-0000004.png": (side[2], side[2]),
        "trajectories-step-0000002.png": (side[10], side[8]),
        "trajectories-step-0000004.png": (side[10], side[8]),
    }


def events_of(run):
    return EventAccumulator(str(run), size_guidance={"scalars": 0, "images": 0, "tensors": 0}).Reload()


def test_tensorboard_has_all_curves_and_pictures(run):
    events = events_of(run)
    scalars = {tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert scalars["train/loss"] == scalars["watch/grad_norm"] == [0, 1, 2, 3]
    assert scalars["val/loss"] == scalars["val/bpd"] == [1, 3]
    (rate,) = (tag for tag in scalars if tag.startswith("watch/lr"))
    assert len(scalars[rate]) >= 3
    assert scalars["watch/images/s"]
    assert sorted(scalars)[0] == "train/loss"  # TensorBoard sorts by name
    assert {f"{part}/loss_q{quarter}" for part in ("train", "val") for quarter in range(1, 5)} <= scalars.keys()
    for kind in ("samples", "trajectories"):
        assert [image.step for image in events.Images(kind)] == [1, 3]
        assert events.Images(kind)[0].encoded_image_string.startswith(b"\x89PNG")
    (config,) = events.Tensors("config/text_summary")
    assert "num_steps: 50" in config.tensor_proto.string_val[0].decode()


def test_nothing_is_written_beside_the_run(done, run):
    _, folder = done
    assert [path.name for path in folder.iterdir()] == ["outputs"]
    assert not list(run.rglob("*.tmp"))
    assert not (run / ".hydra").exists()


def test_the_same_command_says_that_the_run_is_finished_and_changes_nothing(again):
    before = content(again)
    shown = finished(train(again, *FAST))
    assert "already finished" in shown
    assert "val/bpd" in shown
    assert content(again) == before


def test_more_steps_continue_the_run(again, run):
    assert "Continuing from step 4" in finished(train(again, *FAST, "trainer.max_steps=6"))
    continued = again / "outputs" / "train" / "default" / run.name
    status = Status.read(continued)
    assert status is not None
    assert (status.state, status.step) == ("finished", 6)
    assert [event.step for event in events_of(continued).Scalars("train/loss")] == list(range(6))
    assert sorted(path.name for path in continued.parent.iterdir()) == [run.name]


def test_a_directory_with_another_config_is_refused_with_the_difference(again, run):
    path = again / "outputs" / "train" / "default" / run.name / "config.yaml"
    path.write_text(path.read_text().replace("lr: 0.0002", "lr: 0.5"))
    before = content(again)
    answer = train(again, *FAST)
    assert answer.returncode == 1
    assert "optimizer.lr: 0.5 there, 0.0002 now" in answer.stderr
    assert "restart=true" in answer.stderr
    assert "Traceback" not in answer.stderr
    assert content(again) == before


def test_restart_moves_the_old_run_aside(again, run):
    parent = again / "outputs" / "train" / "default"
    before = content(parent / run.name)
    shown = finished(train(again, *FAST, "restart=true"))
    assert "Continuing" not in shown
    (aside,) = (path for path in parent.iterdir() if path.name != run.name)
    assert aside.name.startswith(f"{run.name}.before-")
    assert content(aside) == before
    assert [event.step for event in events_of(parent / run.name).Scalars("train/loss")] == [0, 1, 2, 3]


def test_epochs_are_those_of_the_data(tmp_path):
    """40 images are five batches of 8."""
    limits = ["trainer.max_steps=-1", "trainer.max_epochs=2"]
    finished(train(tmp_path, *FAST, "data.validation_size=9960", "logger=none", *limits))
    (run,) = (tmp_path / "outputs" / "train" / "default").iterdir()
    status = Status.read(run)
    assert status is not None
    assert (status.state, status.step, status.epoch) == ("finished", 10, 2)
    assert not list(run.glob("events*"))


@pytest.mark.slow
def test_profile_leaves_a_table_and_a_trace(tmp_path):
    answer = train(tmp_path, *TINY, "debug=profile", "data.batch_size=2")
    assert answer.returncode == 0, answer.stderr
    (run,) = (tmp_path / "outputs" / "train" / "default").iterdir()
    assert "conv" in (run / "fit-profile.txt").read_text()
    assert [path.suffix for path in run.glob("*.pt.trace.json")] == [".json"]
    assert listed_files(answer.stdout) == ["checkpoints/last.ckpt"]  # no validation: neither a best one nor pictures
