"""A user's mistake gives a line or two without a traceback, and nothing is written."""

import pytest

TINY = ["data=mnist_mini", "model=unet_tiny", "model.channels=8", "schedule.num_steps=50"]


def message_of(command, answer):
    """The message of a refused command."""
    assert answer.returncode == 1
    assert "Traceback" not in answer.stderr
    message = answer.stderr[answer.stderr.index(f"ddpm {command}: ") :]
    assert len(message.splitlines()) <= 4
    return message


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.padding=2"], ["ddpm.models.UNet takes it", "with a plus, +model.padding="]),
        (["sampler.steps=51", "trainer.max_steps=1", "trainer.val_check_interval=1"], ["steps=51", "50"]),
        (["init_from=nowhere"], ["no checkpoint or run at nowhere"]),
        (["init_from_partial=true"], ["has an effect only with init_from"]),
        (["data.batch_size=9001"], ["data.batch_size=9001 is more than the 9000 images"]),
        (["trainer=cpu", "trainer.precision=16-mixed"], ["accelerator=cpu does not support precision=16-mixed"]),
        (["trainer=cpu", "compile=true", "channels_last=true"], ["can crash on a CPU", "Leave out channels_last=true"]),
        (["trainer=cpu", "trainer.num_nodes=2"], ["start the same command on each node", "MASTER_ADDR"]),
    ],
    ids=lambda value: value[0] if "=" in value[0] else "",
)
def test_of_train(ddpm_here, tmp_path, overrides, words):
    message = message_of("train", ddpm_here("train", *TINY, *overrides))
    assert all(word in message for word in words), message
    assert not (tmp_path / "outputs").exists()


def test_of_train_in_a_process_of_its_own(ddpm_cli, tmp_path):
    answer = ddpm_cli("train", *TINY, "sampler.steps=51")
    assert "steps=51" in message_of("train", answer)
    assert answer.stdout == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["ckpt={run}", "sampler=ddim", "sampler.steps=31"], ["sampler: steps=31", "30"]),
        (["ckpt=nowhere/at/all"], ["no checkpoint or run at nowhere/at/all"]),
        ([], ["ckpt must be given", "ddpm sample ckpt="]),
        (["ckpt={run}/best"], ["has no checkpoint checkpoints/best.ckpt"]),
        (["ckpt={run}", "num_samples=0"], ["num_samples=0 "]),
        (["ckpt={run}", "seed=-1"], ["seed"]),
    ],
)
def test_of_sample(ddpm_here, tiny_run, tmp_path, overrides, words):
    message = message_of("sample", ddpm_here("sample", *(word.format(run=tiny_run) for word in overrides)))
    assert all(word in message for word in words), message
    assert list(tmp_path.iterdir()) == []
