"""The content of the wheel, and the installed package outside the clone."""

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

import ddpm

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    # An isolated build would fetch the back-end from the network.
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """A virtual environment with the wheel and this environment's packages, but not its editable `ddpm`."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=False)
    (site,) = folder.glob("lib/python*/site-packages")
    # In a folder added by a .pth file Python reads no .pth files, so the clone does not get onto the path.
    packages = Path(pytest.__file__).parents[1]
    (site / "this_environment.pth").write_text(str(packages))
    install = ["install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), *install], check=True)
    return folder


def run(command: list[str | Path], cwd: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_contains_every_config_and_the_embedded_data(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    configs = {f"ddpm/conf/{path.relative_to(ROOT / 'conf').as_posix()}" for path in (ROOT / "conf").rglob("*.yaml")}
    data = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src").rglob("*.gz")}
    assert len(configs) > 10
    assert len(data) == 4
    data |= {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src").glob("ddpm/pretrained/*/*")}
    others = {"ddpm/py.typed", "ddpm/commands/denoise_page.html", "ddpm/runs/compare/page.html"}
    others |= {f"hydra_plugins/{path.name}" for path in (ROOT / "src" / "hydra_plugins").glob("*.py")}
    for ending in ("safetensors", "json"):
        others |= {f"ddpm/metrics/digit_classifier.{ending}", f"ddpm/metrics/fashion_classifier.{ending}"}
    assert names >= configs | data | others
    assert not [name for name in names if "__pycache__" in name or name.startswith("tests")]


def test_the_installed_package_uses_its_own_configs(installed, tmp_path):
    code = "from ddpm.config import conf_dir; from importlib.metadata import version; "
    code += "print(version('ddpm-lightning')); print(conf_dir())"
    version, folder = run([installed / "bin/python", "-c", code], tmp_path).splitlines()
    assert version == ddpm.__version__
    assert Path(folder).is_relative_to(installed)
    config = run([installed / "bin/ddpm", "train", "data=mnist_mini", "--cfg", "job"], tmp_path)
    assert "ddpm.models.UNet" in config


@pytest.mark.slow
def test_the_installed_package_trains_on_its_embedded_data(installed, tmp_path):
    command = ["train", "debug=fast", "data=mnist_mini", "trainer=cpu"]
    run([installed / "bin/python", "-m", "ddpm", *command], tmp_path)
    assert list(tmp_path.glob("outputs/train/**/checkpoints/last.ckpt"))
