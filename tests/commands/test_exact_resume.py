"""A killed run ends in the same bits as one that was left alone."""

from killed_runs import check_exact_resume

# What a resume could get wrong, small: dropout, accumulation, two epochs, validations and pictures.
TRAIN = [
    "data=mnist_mini", "data.batch_size=64", "data.validation_size=9488", "model=unet_tiny", "model.channels=8",
    "model.multipliers=[1,2]", "model.attention=[]", "model.dropout=0.1", "trainer=cpu", "trainer.max_steps=8",
    "trainer.accumulate_grad_batches=2", "trainer.val_check_interval=6", "trainer.limit_val_batches=1",
    "trainer.log_every_n_steps=1", "checkpoint.every_steps=2", "optimizer.warmup_steps=5",
    "callbacks.pictures.num_samples=4", "sampler.steps=5",
]  # fmt: skip


def test_a_run_that_was_killed_twice_ends_in_the_same_bits(tmp_path):
    check_exact_resume(tmp_path, *TRAIN, kill_at=(3, 7))
