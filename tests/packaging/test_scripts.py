"""The set-up of scripts/run, for real, in a small clone: the same scripts, a package that needs nothing."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"

PYPROJECT = """\
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]

[project]
name = "ddpm"
version = "1"
"""

# The smallest build back-end: no build requirement, so pip needs no network.
BACKEND = """\
import os, pathlib, zipfile

def build_editable(folder, config_settings=None, metadata_directory=None):
    assert "BREAK" not in os.environ
    with open("builds.log", "a") as log:
        log.write("built\\n")
    name = "ddpm-1-py3-none-any.whl"
    files = {
        "ddpm.py": "import sys\\ndef main():\\n    print(sys.argv[1:])\\n    sys.exit(3)\\n",
        "ddpm-1.dist-info/METADATA": "Metadata-Version: 2.1\\nName: ddpm\\nVersion: 1\\n",
        "ddpm-1.dist-info/WHEEL": "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
        "ddpm-1.dist-info/entry_points.txt": "[console_scripts]\\nddpm = ddpm:main\\n",
    }
    files["ddpm-1.dist-info/RECORD"] = "".join(f"{file},,\\n" for file in [*files, "ddpm-1.dist-info/RECORD"])
    with zipfile.ZipFile(pathlib.Path(folder) / name, "w") as wheel:
        for file, text in files.items():
            wheel.writestr(file, text)
    return name
"""


@pytest.fixture
def clone(tmp_path) -> Path:
    root = tmp_path / "a clone"  # with a space, as people's folders have
    shutil.copytree(SCRIPTS, root / "scripts")
    (root / "pyproject.toml").write_text(PYPROJECT)
    (root / "backend.py").write_text(BACKEND)
    (root / "constraints.txt").write_text("")
    return root


# A developer's PYTHONPATH would bring the real ddpm in.
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"PYTHON": sys.executable}


def start(clone: Path, *arguments: str, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [clone / "scripts" / "run", *arguments],
        cwd=clone.parent,
        env=ENVIRONMENT | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(clone: Path, *arguments: str, **env: str) -> tuple[int, str, str]:
    process = start(clone, *arguments, **env)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def builds(clone: Path) -> int:
    return len((clone / "builds.log").read_text().splitlines())


@pytest.mark.parametrize("script", ["run", "test", "setup.sh", "../.ci/run"])
def test_scripts_are_bash(script):
    subprocess.run(["bash", "-n", SCRIPTS / script], check=True)


def test_run_installs_once_and_again_when_the_requirements_change(clone):
    code, out, err = run(clone, "train", "x=a b")
    assert (code, out) == (3, "['train', 'x=a b']\n"), err
    assert "installing" in err

    assert run(clone, "train") == (3, "['train']\n", "")
    assert builds(clone) == 1

    (clone / "constraints.txt").write_text("# changed\n")
    link = clone.parent / "link"
    link.symlink_to("a clone/scripts/run")
    assert subprocess.run([link], env=ENVIRONMENT, capture_output=True).returncode == 3
    assert builds(clone) == 2


def test_a_failed_installation_is_tried_again(clone):
    code, out, err = run(clone, "train", BREAK="1")
    assert (code, out) == (1, "")
    assert "the installation failed" in err
    assert run(clone, "train")[:2] == (3, "['train']\n")


def test_two_first_starts_at_once_install_once(clone):
    processes = [start(clone, "train") for _ in range(2)]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [3, 3], outputs
    assert builds(clone) == 1


def test_an_old_python_is_refused_with_the_remedy(clone):
    old = clone / "python3.9"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.6\nexit 1\n')
    old.chmod(old.stat().st_mode | stat.S_IXUSR)
    code, _, err = run(clone, "train", PYTHON=str(old))
    assert code == 1
    assert "needs Python 3.11 or newer" in err
    assert "Python 3.9.6" in err
