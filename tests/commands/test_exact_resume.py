"""A run that is killed and continued ends in the bits of an undisturbed one."""

import pytest
from killed_runs import TINY, check_exact_resume


@pytest.mark.parametrize("kill_at", [(7,), pytest.param((3, 7), marks=pytest.mark.slow)])
def test_a_run_that_was_killed_ends_in_the_same_bits(tmp_path, device, kill_at):
    """With dropout, accumulated gradients, two epochs, validations and pictures."""
    more = [
        "data.batch_size=32", "data.validation_size=9744", "trainer.max_steps=8", "trainer.accumulate_grad_batches=2",
        "trainer.val_check_interval=6", "optimizer.warmup_steps=5", f"trainer.accelerator={device}",
    ]  # fmt: skip
    check_exact_resume(tmp_path, *TINY, *more, kill_at=kill_at)


@pytest.mark.cuda
def test_a_gpu_with_deterministic_algorithms_in_bfloat16_resumes_in_the_same_bits(tmp_path, gpu):
    """With attention and labels, whose gradients on a GPU depend on the order of additions."""
    more = ["model.attention=[1]", "model.num_classes=10", "trainer.precision=bf16-mixed", "channels_last=true",
            "trainer.deterministic=true", "data.on_device=true", f"trainer.accelerator={gpu}"]  # fmt: skip
    check_exact_resume(tmp_path, *TINY, *more, kill_at=(3,))
