"""Set-up by scripts/run and scripts/test: the real scripts in a small clone whose package has no requirements."""

import os
import runpy
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

[project.optional-dependencies]
ray = []
dev = []
"""

# A build back-end without requirements: the installation needs no network.
BACKEND = """\
import os, pathlib, zipfile

def build_editable(folder, config_settings=None, metadata_directory=None):
    assert "BREAK" not in os.environ
    with open("builds.log", "a") as log:
        log.write("built\\n")
    name = "ddpm-1-py3-none-any.whl"
    files = {
        "ddpm.py": "import sys\\ndef main():\\n    print(sys.argv[1:])\\n    sys.exit(3)\\n",
        "ddpm-1.dist-info/METADATA": "Metadata-Version: 2.1\\nName: ddpm\\nVersion: 1\\n"
        "Provides-Extra: ray\\nProvides-Extra: dev\\n",
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
    root = tmp_path / "a clone"  # with a space, as in many users' folders
    shutil.copytree(SCRIPTS, root / "scripts")
    (root / "pyproject.toml").write_text(PYPROJECT)
    (root / "backend.py").write_text(BACKEND)
    (root / "constraints.txt").write_text("")
    return root


# PYTHONPATH may contain the real ddpm. The folder of this interpreter contains uv if scripts/test made it.
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {
    "PYTHON": sys.executable,
    "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    "PIP_NO_INDEX": "1",
}


def start(clone: Path, *arguments: str, script: str = "run", **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [clone / "scripts" / script, *arguments],
        cwd=clone.parent,
        env=ENVIRONMENT | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(clone: Path, *arguments: str, script: str = "run", **env: str) -> tuple[int, str, str]:
    process = start(clone, *arguments, script=script, **env)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def builds(clone: Path) -> int:
    return len((clone / "builds.log").read_text().splitlines())


def extras(clone: Path) -> list[str]:
    return (clone / ".venv" / "ddpm-setup").read_text().splitlines()[3:]


def test_scripts_are_bash_and_keep_their_line_ends():
    for script in ("run", "test", "benchmark", "gpu", "reproduce", "setup.sh", "../.ci/run"):
        subprocess.run(["bash", "-n", SCRIPTS / script], check=True)
    command = ["git", "check-attr", "eol", "--", "scripts/run"]
    attribute = subprocess.run(command, cwd=SCRIPTS.parent, capture_output=True, text=True)
    assert attribute.stdout == "scripts/run: eol: lf\n"


def test_run_installs_what_is_missing_and_nothing_twice(clone):
    """In one clone: a failure, two starts at once, an extra, the development tools, changed requirements."""
    code, out, err = run(clone, "train", BREAK="1")
    assert (code, out) == (1, "")
    assert "the installation failed" in err

    processes = [start(clone, "train", "x=a b") for _ in range(2)]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [3, 3], outputs
    assert {out for out, _ in outputs} == {"['train', 'x=a b']\n"}
    assert any("installed in" in err for _, err in outputs)
    assert builds(clone) == 1

    assert run(clone, "train") == (3, "['train']\n", "")

    code, out, err = run(clone, "train", "hydra/launcher=ray")
    assert (code, out) == (3, "['train', 'hydra/launcher=ray']\n"), err
    assert extras(clone) == ["ray"]
    assert run(clone, "train", "hydra/launcher=ray")[2] == ""

    assert "lint failed" in run(clone, script="test")[2]  # this clone has no ruff
    assert extras(clone) == ["dev", "ray"]
    assert run(clone, "train", "hydra/sweeper=optuna")[2] == ""  # dev contains it
    assert "installed in" in run(clone, "train", "logger=[csv,mlflow]", "ckpt=hf://a/b")[2]
    assert extras(clone) == ["dev", "hub", "mlflow", "ray"]

    before = builds(clone)
    (clone / "constraints.txt").write_text("# changed\n")
    link = clone.parent / "link"
    link.symlink_to("a clone/scripts/run")
    assert subprocess.run([link], env=ENVIRONMENT, capture_output=True).returncode == 3
    assert builds(clone) >= before
    assert extras(clone) == ["dev", "hub", "mlflow", "ray"]


@pytest.mark.parametrize("version", ["3.9.6", "3.14.0"])
def test_an_unsupported_python_is_refused_with_the_remedy(clone, version):
    python = clone / "python"
    numbers = tuple(int(part) for part in version.split("."))
    python.write_text(
        f"""#!/bin/sh
[ "$1" = --version ] && echo Python {version} && exit
exec "{sys.executable}" -c "import sys; sys.version_info = {numbers}; $2"
"""
    )
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    code, _, err = run(clone, "train", PYTHON=str(python))
    assert code == 1
    assert f"run: needs Python 3.11, 3.12 or 3.13; {python} is Python {version}. Name another one: PYTHON=" in err


@pytest.mark.parametrize(("folder", "options"), [("/proc/uv", ["--no-cache"]), (".uv_cache", ["--no-cache"]), ("", [])])
def test_uv_does_without_a_cache_that_cannot_be_written(tmp_path, monkeypatch, folder, options):
    """As below a missing HOME."""
    uv = tmp_path / "uv"
    uv.write_text(f"#!/bin/sh\necho {folder or tmp_path / 'cache'}\n")
    uv.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    assert runpy.run_path(str(SCRIPTS / "install.py"))["cache"](str(uv)) == options
    assert not (tmp_path / ".uv_cache").exists()
