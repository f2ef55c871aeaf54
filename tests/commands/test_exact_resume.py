"""A run that is killed and continued ends in the bits of an undisturbed one."""

from killed_runs import TINY, check_exact_resume


def test_a_run_that_was_killed_twice_ends_in_the_same_bits(tmp_path):
    """With dropout, accumulated gradients, two epochs, validations and pictures."""
    more = ["data.batch_size=64", "trainer.max_steps=8", "trainer.accumulate_grad_batches=2",
            "trainer.val_check_interval=6", "optimizer.warmup_steps=5"]  # fmt: skip
    check_exact_resume(tmp_path, *TINY, *more, kill_at=(3, 7))
