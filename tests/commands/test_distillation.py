"""`objective=distillation`, with the runs of two steps of conftest.py as teachers."""

import pytest
import torch

import ddpm
from ddpm.diffusion import Autoguidance, ClassifierFree
from ddpm.training.distillation import Distillation

TINY = [
    "data=mnist_mini",
    "model=unet_tiny",
    "model.channels=8",
    "schedule.num_steps=30",
    "sampler.steps=3",
    "trainer=cpu",
]


@pytest.fixture
def batch():
    draws = torch.Generator().manual_seed(0)
    x0, eps = (torch.randn(6, 1, 28, 28, generator=draws) for _ in range(2))
    return x0, torch.tensor([0, 5, 10, 15, 20, 29]), eps


@pytest.mark.parametrize("kind", ["teacher alone", "classifier-free", "autoguidance"])
def test_the_loss_is_the_squared_distance_to_the_guided_teacher(conditional_run, tmp_path, batch, kind):
    x0, t, eps = batch
    labels = torch.tensor([3, 1, 4, 1, 5, 10])  # 10 is "no label"
    teacher = ddpm.load(conditional_run / "last")
    weak = ddpm.load(conditional_run / "last")
    with torch.no_grad():
        for weight in weak.ema.parameters():
            weight *= 0.9
    guidance, settings = {
        "teacher alone": (ClassifierFree(1.0), {}),
        "classifier-free": (ClassifierFree(2.0, [5, 20]), {"scale": 2.0, "interval": [5, 20]}),
        "autoguidance": (Autoguidance(weak, 3.0), {"scale": 3.0, "weak": str(tmp_path / "weak.ckpt")}),
    }[kind]
    checkpoint = torch.load(conditional_run / "checkpoints" / "last.ckpt", weights_only=True)
    torch.save(checkpoint | {"state_dict": weak.state_dict()}, tmp_path / "weak.ckpt")
    student = ddpm.load(conditional_run / "last").network
    with torch.no_grad():
        for weight in student.parameters():
            weight += 0.01

    loss = Distillation(str(conditional_run / "last"), **settings)(
        student, teacher.diffusion, x0, t, eps, labels=labels
    )

    x_t = teacher.diffusion.q_sample(x0, t, eps)
    with torch.no_grad():
        target = guidance(teacher.ema, 10)(x_t, t, labels=labels)
    expected = (student(x_t, t, labels=labels) - target).square().mean(dim=(1, 2, 3))
    assert (loss > 1e-8).all()
    torch.testing.assert_close(loss, expected)
    loss.sum().backward()
    assert all(weight.grad is not None for weight in student.parameters())


def test_a_student_that_starts_as_its_teacher_has_no_loss_and_needs_no_teacher_to_sample(ddpm_here, tmp_path, tiny_run):
    teacher = tiny_run.rename(tiny_run.with_name("teacher"))
    distil = ["objective=distillation", f"objective.loss.teacher={teacher}", f"init_from={teacher}"]
    answer = ddpm_here("train", *TINY, *distil, "trainer.max_steps=1", "name=student", "trainer.precision=32-true")
    teacher.rename(tiny_run)
    assert answer.returncode == 0, answer.stderr
    run = tmp_path / "outputs" / "train" / "default" / "student"
    student = ddpm.load(run)
    assert "teacher" not in str(list(student.state_dict()))
    assert student.sample(2, steps=2, seed=0).isfinite().all()
    x0 = torch.zeros(1, 1, 28, 28)
    with pytest.raises(ddpm.errors.UserError, match="there is no checkpoint"):
        student.objective(student.ema, student.diffusion, x0, torch.zeros(1, dtype=torch.int64), x0)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([], "objective.loss.teacher"),
        (["objective.loss.teacher=nowhere"], "no checkpoint or run at nowhere"),
        (["objective.loss.teacher={plain}", "objective.loss.weak={plain}"], "weak has no effect with scale=1"),
        (["objective.loss.teacher={plain}", "objective.loss.scale=2.0"], "the model is unconditional"),
        (["objective.loss.teacher={plain}", "objective.loss.scale=-1.0"], "scale must be a finite number, at least 0"),
        (["objective.loss.teacher={plain}", "objective.prediction=v"], "another schedule or type of prediction"),
        (["objective.loss.teacher={plain}", "schedule=cosine"], "another schedule or type of prediction"),
        (["objective.loss.teacher={plain}", "model.num_classes=10"], "The network has no classes"),
    ],
    ids=str,
)
def test_mistakes(ddpm_here, tiny_run, tmp_path, overrides, words):
    given = [word.format(plain=tiny_run) for word in overrides]
    answer = ddpm_here("train", *TINY, "objective=distillation", *given)
    assert answer.returncode == 1
    assert "Traceback" not in answer.stderr
    assert words in answer.stderr
    assert list(tmp_path.iterdir()) == []
