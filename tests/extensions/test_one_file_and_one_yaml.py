"""A user's own objective, distillation and LightningModule, each in one Python file and one YAML in an empty folder.

Each is trained by the real command, killed with kill -9, continued to equal bits, loaded, and sampled from.
"""

import sys
from pathlib import Path

import pytest
import torch
from killed_runs import TINY, check_exact_resume, run_directory, train
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

import ddpm

pytestmark = pytest.mark.slow

SECOND_FORWARD = """\
import torch
from ddpm.diffusion import Objective


class Consistent(Objective):
    \"\"\"The squared distance to the mean of eps and of the network's own prediction at t - 1.\"\"\"

    def __call__(self, network, diffusion, x0, t, eps, **condition):
        nearer = (t - 1).clamp(min=0)
        output = network(diffusion.q_sample(x0, t, eps), t, **condition)
        with torch.no_grad():
            target = network(diffusion.q_sample(x0, nearer, eps), nearer, **condition)
        return (output - (target + eps) / 2).square().mean(dim=(1, 2, 3))
"""

DISTILLATION = """\
import ddpm
from ddpm.diffusion import Objective


class Distillation(Objective):
    \"\"\"The squared distance to the prediction of a trained model.\"\"\"

    def __init__(self, teacher):
        self.teacher = ddpm.load(teacher).ema

    def __call__(self, network, diffusion, x0, t, eps, **condition):
        x_t = diffusion.q_sample(x0, t, eps)
        teacher = self.teacher.to(x0.device)
        return (network(x_t, t, **condition) - teacher(x_t, t, **condition)).square().mean(dim=(1, 2, 3))
"""

SUBCLASS = """\
from ddpm.training import DDPM


class Watched(DDPM):
    \"\"\"Logs the largest weight before each optimizer step.\"\"\"

    def __init__(self, scale, **kwargs):
        super().__init__(**kwargs)
        self.scale = scale

    def on_before_optimizer_step(self, optimizer):
        largest = max(weight.abs().max() for weight in self.network.parameters())
        self.log_now({"mine/largest": self.scale * largest})
"""


def write(folder: Path, code: str, yaml: str, text: str) -> list[str]:
    """Write mine.py and conf/<yaml>; return the arguments that use them."""
    (folder / "mine.py").write_text(code)
    path = folder / "conf" / yaml
    path.parent.mkdir(parents=True)
    path.write_text(text)
    return ["--config-dir", str(folder / "conf"), f"{path.parent.name}={path.stem}"]


def check(folder: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Kill and continue a run with these arguments; load it and sample. Returns the run's directory."""
    _, run = check_exact_resume(folder, *arguments, *TINY, kill_at=[3], env={"PYTHONPATH": str(folder)})
    monkeypatch.syspath_prepend(folder)
    model = ddpm.load(run / "last", config_dir=folder / "conf")
    images = model.sample(2, steps=3, seed=0)
    assert images.shape == (2, 1, 28, 28)
    assert images.isfinite().all()
    return run


@pytest.fixture(autouse=True)
def forget_mine():
    """Each test has its own module `mine`."""
    yield
    sys.modules.pop("mine", None)


def test_an_objective_with_a_second_forward_pass(tmp_path, monkeypatch):
    yaml = "defaults:\n  - timesteps: uniform\nprediction: epsilon\nloss:\n  _target_: mine.Consistent\n"
    check(tmp_path, write(tmp_path, SECOND_FORWARD, "objective/consistent.yaml", yaml), monkeypatch)


def test_distillation_from_a_checkpoint(tmp_path, monkeypatch):
    """The teacher's weights are neither trained nor saved."""
    done = train(tmp_path / "teacher", *TINY, "seed=1")
    assert done.returncode == 0, done.stderr
    teacher = run_directory(tmp_path / "teacher") / "checkpoints" / "last.ckpt"
    before = teacher.read_bytes()
    yaml = (
        "defaults:\n  - timesteps: uniform\nprediction: epsilon\n"
        f"loss:\n  _target_: mine.Distillation\n  teacher: {teacher}\n"
    )
    run = check(tmp_path, write(tmp_path, DISTILLATION, "objective/distillation.yaml", yaml), monkeypatch)

    assert teacher.read_bytes() == before
    student, other = (torch.load(path, weights_only=True) for path in (run / "checkpoints" / "last.ckpt", teacher))
    assert student["state_dict"].keys() == other["state_dict"].keys()
    trained = student["optimizer_states"][0]["param_groups"][0]["params"]
    assert len(trained) == sum(name.startswith("network.") for name in student["state_dict"])


def test_a_lightning_module_of_the_users_own(tmp_path, monkeypatch):
    yaml = "# @package _global_\nmodule:\n  _target_: mine.Watched\n  scale: 10\n"
    run = check(tmp_path, write(tmp_path, SUBCLASS, "experiment/watched.yaml", yaml), monkeypatch)
    assert type(ddpm.load(run, config_dir=tmp_path / "conf")).__name__ == "Watched"
    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    assert [event.step for event in events.Scalars("mine/largest")] == list(range(6))
    assert all(event.value > 0 for event in events.Scalars("mine/largest"))
