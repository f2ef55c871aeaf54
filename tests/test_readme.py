"""The README says the truth: its examples run, and what it names exists."""

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def test_a_schedule_network_data_set_and_objective_of_ones_own_train_together(ddpm_cli, tmp_path: Path) -> None:
    files = [text for language, text in BLOCKS if language in ("python", "yaml")]
    for text in files:
        name = re.match(r"# (\S+)\n", text)
        assert name is not None, f"a block of the README does not name its file:\n{text}"
        path = tmp_path / name[1]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert len(files) == 8

    (command,) = re.findall(r"^ddpm (train --config-dir conf .*)$", README, flags=re.MULTILINE)
    done = ddpm_cli(*shlex.split(command), env={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    (checkpoint,) = tmp_path.glob("outputs/train/default/*/checkpoints/last.ckpt")

    done = ddpm_cli(
        "sample", f"ckpt={checkpoint}", "sampler.steps=5", "num_samples=2", "--config-dir", "conf",
        env={"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("named", sorted(set(re.findall(r"`(test_\w+\.py::\w+)`", README))))
def test_every_test_that_proves_an_equation_exists(named: str) -> None:
    file, function = named.split("::")
    assert f"def {function}(" in (ROOT / "tests" / "diffusion" / file).read_text(encoding="utf-8")


@pytest.mark.parametrize("path", sorted(set(re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README))))
def test_every_picture_is_there(path: str) -> None:
    assert (ROOT / path).is_file()


def test_the_pictures_stay_small() -> None:
    assert sum(path.stat().st_size for path in (ROOT / "outputs" / "gallery").iterdir()) < 300_000


@pytest.mark.parametrize("group", re.findall(r"^\| `(\w+)=` \|", README, flags=re.MULTILINE))
def test_the_table_of_choices_lists_every_option(group: str) -> None:
    (row,) = re.findall(rf"^\| `{group}=` \| (.*?) \|", README, flags=re.MULTILINE)
    assert sorted(re.findall(r"`(\w+)`", row)) == sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml"))
