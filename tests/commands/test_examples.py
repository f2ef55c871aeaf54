"""The programs for readers: scripts/minimal.py and scripts/chapter.py."""

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def minimal(tmp_path, monkeypatch):
    """The module scripts/minimal.py, in an empty working directory."""
    spec = importlib.util.spec_from_file_location("minimal", SCRIPTS / "minimal.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.chdir(tmp_path)
    return module


def lines_of(script: str) -> dict[str, int]:
    """Returns the number of lines with code in each function of a script, without its `def`."""
    text = (SCRIPTS / script).read_text(encoding="utf-8")
    lines = text.splitlines()
    return {
        node.name: sum(bool(line.strip()) for line in lines[node.body[0].lineno - 1 : node.end_lineno])
        for node in ast.parse(text).body
        if isinstance(node, ast.FunctionDef)
    }


def test_the_shortest_programs_are_short():
    lines = lines_of("minimal.py")
    assert lines["sample"] <= 10
    assert lines["train"] <= 30


def test_a_picture_from_a_run(minimal, tiny_run):
    minimal.sample(str(tiny_run))
    with Image.open("samples.png") as picture:
        assert picture.size == (4 * (3 * 28 + 2) + 2, 4 * (3 * 28 + 2) + 2)


@pytest.mark.filterwarnings("ignore:Found .* module.* in eval mode")  # the moving average
def test_training_on_a_tensor(minimal):
    torch.save(torch.randint(256, (20, 3, 8, 12)).byte(), "mine.pt")
    minimal.train("mine.pt", max_steps=2)
    with Image.open("samples.png") as picture:
        assert picture.size == (4 * (8 * 12 + 2) + 2, 4 * (8 * 8 + 2) + 2)
        assert picture.mode == "RGB"


def test_the_chapter_needs_the_mathematics_and_the_networks_alone():
    nodes = list(ast.walk(ast.parse((SCRIPTS / "chapter.py").read_text(encoding="utf-8"))))
    imported = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    imported |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    used = {name for name in imported if name.split(".")[0] not in sys.stdlib_module_names}
    assert used == {"ddpm.diffusion", "ddpm.models", "matplotlib.pyplot", "torch"}


@pytest.mark.slow
def test_the_chapter_runs(tmp_path):
    """With few training steps. Its equations are checked by the chapter itself."""
    done = subprocess.run(
        [sys.executable, "-W", "error", SCRIPTS / "chapter.py"],
        cwd=tmp_path,
        env=os.environ | {"CHAPTER_STEPS": "100", "MPLBACKEND": "agg"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split("step 100: loss ")[1].split()[0]) < 0.7
    pictures = sorted((tmp_path / "outputs" / "chapter").glob("*.png"))
    assert [int(path.name[0]) for path in pictures] == list(range(1, 10))
