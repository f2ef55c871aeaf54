"""A sweep asks the plan of each job before the first one starts: a plan refuses what `run` would refuse."""

import pytest
from command_line import run_here


@pytest.mark.parametrize(
    ("command", "overrides", "words"),
    [
        ("sample", ["mode=sdedit", "images=[1,2000]", "sampler.steps=3"], "the test set has the images 0 to 1999"),
        ("sample", ["variance=large", "sampler=ddim", "sampler.steps=3"], "needs sampler=ancestral"),
        ("sample", ["sampler=ancestral", "variance=optimal"], "has not been measured"),
        ("evaluate", ["num_images=2001", "num_samples=0"], "num_images=2001 must be from 1 to 2000"),
        ("evaluate", ["timesteps_per_image=30", "num_samples=0"], "timesteps_per_image=30 must be from 1 to 29"),
        ("evaluate", ["evaluate.exact=true", "timesteps_per_image=4", "num_samples=0"], "leave one out"),
        ("evaluate", ["evaluate.x0_mse_draws=3", "num_samples=0"], "at least 4"),
        ("evaluate", ["num_samples=99", "sampler.steps=3"], "at least 100"),
        ("evaluate", ["num_samples=0", "sampler.steps=3", "features=digits"], "features, sampler.steps would make no"),
        ("evaluate", ["num_images=0", "evaluate.exact=true"], "evaluate.exact would make no difference with num_im"),
        ("evaluate", ["num_images=0", "sampler.steps=3", "variance=large"], "needs sampler=ancestral"),
        ("denoise", ["image_index=2000"], "the test set has the images 0 to 1999"),
        ("denoise", ["schedule.num_steps=40"], "schedule and ckpt do not go together"),
    ],
)
def test_a_plan_refuses_what_a_run_would_refuse_and_writes_nothing(tiny_run, tmp_path, command, overrides, words):
    answer = run_here(command, "-m", f"ckpt={tiny_run}", "trainer=cpu", "seed=0,1", *overrides, cwd=tmp_path)
    assert answer.returncode == 1
    assert words in answer.stderr
    assert "process" not in answer.stderr  # no job was started
    assert list(tmp_path.iterdir()) == []
