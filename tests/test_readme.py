"""The examples in the README files run, and what they name exists."""

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [README, *(path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("src/ddpm/*/README.md")))]
FILES = {
    name: text
    for page in PAGES
    for text in re.findall(r"^```(?:python|yaml)\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    for name in re.findall(r"\A(?:# @package _global_\n)?# ((?:mine|conf)/\S+)\n", text)
}
"""the examples that name their file"""


def test_the_examples_of_own_parts_train_together(ddpm_here, tmp_path: Path) -> None:
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    parts = {Path(name).parts[1] for name in FILES if name.startswith("conf/")}
    assert parts == {"schedule", "model", "data", "objective", "experiment"}

    (command,) = re.findall(r"^ddpm (train --config-dir conf .*)$", README, flags=re.MULTILINE)
    done = ddpm_here(*shlex.split(command), "experiment=watched", env={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    (checkpoint,) = tmp_path.glob("outputs/train/watched/*/checkpoints/last.ckpt")
    assert "mine/largest_weight" in (checkpoint.parents[1] / "metrics.json").read_text()

    done = ddpm_here(
        "sample", f"ckpt={checkpoint}", "sampler.steps=5", "num_samples=2", "--config-dir", "conf",
        env={"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_every_test_that_proves_an_equation_exists() -> None:
    named = re.findall(r"`(test_\w+\.py)::(\w+)`", "\n".join(PAGES))
    assert len(named) >= 10
    for file, function in named:
        assert f"def {function}(" in (ROOT / "tests" / "diffusion" / file).read_text(encoding="utf-8")


def test_every_page_that_a_page_links_to_is_there() -> None:
    for path in re.findall(r"\]\(((?!http)[^)#]+)\)", README):
        assert (ROOT / path).exists(), path


def test_the_readme_is_short_and_every_folder_has_one() -> None:
    assert len(README.splitlines()) <= 250
    folders = [path for path in (ROOT / "src" / "ddpm").iterdir() if path.is_dir() and path.name != "__pycache__"]
    for folder in [*folders, ROOT / "conf", ROOT / "tests", ROOT / "outputs"]:
        assert (folder / "README.md").is_file(), folder


def test_the_pictures_stay_small() -> None:
    assert sum(path.stat().st_size for path in (ROOT / "outputs" / "gallery").iterdir()) < 300_000


@pytest.mark.parametrize("group", re.findall(r"^\| `(\w+)=` \|", README, flags=re.MULTILINE))
def test_the_table_of_choices_lists_every_option(group: str) -> None:
    (row,) = re.findall(rf"^\| `{group}=` \| (.*?) \|", README, flags=re.MULTILINE)
    assert sorted(re.findall(r"`(\w+)`", row)) == sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml"))
