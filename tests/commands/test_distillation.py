"""`objective=guidance_distillation`, with the runs of two steps of conftest.py as teachers."""

import json

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
    distil = ["objective=guidance_distillation", f"objective.loss.teacher={teacher}", f"init_from={teacher}"]
    options = ["trainer.max_steps=1", "trainer.log_every_n_steps=1", "name=student", "trainer.precision=32-true"]
    answer = ddpm_here("train", *TINY, *distil, *options)
    teacher.rename(tiny_run)
    assert answer.returncode == 0, answer.stderr
    run = tmp_path / "outputs" / "train" / "default" / "student"
    assert json.loads((run / "metrics.json").read_text())["train/loss"] < 1e-5  # the network begins as the average
    saved, of_teacher = (
        torch.load(path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for path in (run, tiny_run)
    )
    assert saved.keys() == of_teacher.keys()
    student = ddpm.load(run)
    assert student.sample(2, steps=2, seed=0).isfinite().all()
    with pytest.raises(ddpm.errors.UserError, match="there is no checkpoint"):
        student.objective.check(student)
    again = ddpm_here("train", *TINY, *distil, *options)
    assert again.returncode == 0, again.stderr
    assert "already finished" in again.stdout


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([], "objective.loss.teacher"),
        (["objective.loss.teacher=nowhere"], "no checkpoint or run at nowhere"),
        (["objective.loss.teacher={plain}", "objective.loss.weak={plain}"], "weak has no effect with scale=1"),
        (["objective.loss.teacher={plain}", "objective.loss.scale=2.0"], "the model is unconditional"),
        (["objective.loss.teacher={plain}", "objective.loss.scale=-1.0"], "scale must be a finite number, at least 0"),
        (["objective.loss.teacher={plain}", "objective.prediction=v"], "differ in their prediction: v and epsilon"),
        (["objective.loss.teacher={plain}", "schedule=cosine"], "differ in their betas"),
        (["objective.loss.teacher={plain}", "model.num_classes=10"], "differ in their number of classes: 10 and None"),
        (["objective.loss.teacher={labels}"], "differ in their number of classes: None and 10"),
    ],
    ids=str,
)
def test_mistakes(ddpm_here, tiny_run, conditional_run, tmp_path, overrides, words):
    given = [word.format(plain=tiny_run, labels=conditional_run) for word in overrides]
    answer = ddpm_here("train", *TINY, "objective=guidance_distillation", *given)
    assert answer.returncode == 1
    assert "Traceback" not in answer.stderr
    assert words in answer.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_teacher_that_always_had_labels_needs_them(conditional_run):
    model = ddpm.load(conditional_run / "last")
    distillation = Distillation(str(conditional_run / "last"))
    distillation.check(model)
    distillation.teacher.label_dropout = 0.0
    with pytest.raises(ddpm.errors.UserError, match=r"trained with label_dropout=0. Set module.label_dropout=0"):
        distillation.check(model)
    model.label_dropout = 0.0
    distillation.check(model)
