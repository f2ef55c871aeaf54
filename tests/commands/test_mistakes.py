"""A user's mistake is told in a line or two, without a traceback, and leaves nothing behind."""

import pytest
import torch

TINY = ["data=mnist_mini", "model=unet_tiny", "model.channels=8", "schedule.num_steps=50"]


def told(command, answer):
    """The message of a command that was refused."""
    assert answer.returncode == 1
    assert "Traceback" not in answer.stderr
    message = answer.stderr[answer.stderr.index(f"ddpm {command}: ") :]
    assert len(message.splitlines()) <= 4
    return message


def slow(overrides, words):
    return pytest.param(overrides, words, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["data=image_folder", "data.root=.", "data.image_size=30", "data.image_channels=1"],
            ["needs height and width divisible by 4", "30 x 30"],
        ),
        (
            ["data=mnist", "paths.data=empty"],
            ["MNIST is not in", "DDPM_DATA_DIR", "data=mnist_mini", "train-images-idx3-ubyte"],
        ),
        slow(["trainer=cuda", "trainer.devices=100"], ["trainer: "]),
        (["sampler.steps=51", "trainer.max_steps=1", "trainer.val_check_interval=1"], ["51 steps", "50"]),
        slow(["schedule=cosine", "schedule.max_beta=1"], ["zero terminal", "prediction v or x0"]),
        slow(["init_from=nowhere"], ["no checkpoint or run at nowhere"]),
        slow(["data=image_folder", "data.root=nowhere"], ["there is no folder nowhere"]),
        slow(["data.batch_size=9001"], ["data.batch_size=9001 is more than the 9000 images"]),
        slow(["seed=-1"], ["seed"]),
        slow(["trainer.max_steps=1.5"], ["trainer.max_steps=1.5 must be a whole number"]),
        slow(["trainer.val_check_interval=0"], ["trainer.val_check_interval=0", "at least 1"]),
        slow(["trainer.precision=64-true"], ["precision=64-true is none of"]),
        slow(["optimizer.warmup_steps=-1"], ["optimizer.warmup_steps=-1"]),
        slow(["data.batch_size=2.5"], ["batch_size=2.5"]),
        slow(["trainer=cpu", "trainer.precision=16-mixed"], ["precision=16-mixed is not for accelerator=cpu"]),
        slow(["trainer=cpu", "trainer.devices=0"], ["devices=0 does not fit accelerator=cpu"]),
        (["trainer=cpu", "trainer.devices=3"], ["data.batch_size=128 must be divisible by the 3 processes"]),
        slow(["trainer=cpu", "trainer.num_nodes=2"], ["start the same command on each node", "MASTER_ADDR"]),
        slow(["trainer.num_nodes=0"], ["trainer.num_nodes=0 must be a whole number, at least 1"]),
        slow(["checkpoint.every_steps=0", "dry_run=true"], ["every_steps=0"]),
        slow(["data.num_workers=-1", "dry_run=true"], ["num_workers=-1 must be at least 0"]),
        slow(["data.on_device=true", "data.num_workers=2"], ["on_device=true needs num_workers=0"]),
    ],
    ids=lambda value: value[0] if "=" in value[0] else "",
)
def test_of_train(ddpm_cli, tmp_path, overrides, words):
    message = told("train", ddpm_cli("train", *TINY, *overrides))
    assert all(word in message for word in words), message
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("device", ["cuda", "xpu"])
def test_of_train_on_a_device_that_is_not_there(ddpm_cli, tmp_path, device):
    if getattr(torch, device).is_available():
        pytest.skip("it is there")
    message = told("train", ddpm_cli("train", *TINY, f"trainer={device}"))
    assert f"accelerator={device} is not available" in message
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["ckpt={run}", "sampler=ddim", "sampler.steps=31"], ["sampler: 31 steps", "30"]),
        (["ckpt=nowhere/at/all"], ["no checkpoint or run at nowhere/at/all"]),
        ([], ["ckpt must be given", "ddpm sample ckpt="]),
        slow(["ckpt={run}/best"], ["has no checkpoint checkpoints/best.ckpt"]),
        slow(["ckpt={run}", "num_samples=0"], ["at least 1"]),
        slow(["ckpt={run}", "seed=-1"], ["seed"]),
    ],
)
def test_of_sample(ddpm_cli, tiny_run, tmp_path, overrides, words):
    message = told("sample", ddpm_cli("sample", *(word.format(run=tiny_run) for word in overrides)))
    assert all(word in message for word in words), message
    assert list(tmp_path.iterdir()) == []
