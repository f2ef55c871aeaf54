"""Shared by all tests: array shapes checked at run time, one thread a process, the real command line, real data."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

# Before torch is imported, and for child processes too: the last bit of a sum depends on the number of threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from jaxtyping import install_import_hook

# Before ddpm is imported: the hook changes modules while they are loaded.
install_import_hook(["ddpm.diffusion", "ddpm.models"], "beartype.beartype")

# Tests run commands in folders of their own, where a relative path would point elsewhere.
if "DDPM_DATA_DIR" in os.environ:
    os.environ["DDPM_DATA_DIR"] = str(Path(os.environ["DDPM_DATA_DIR"]).expanduser().resolve())

SLOW_TIMEOUT = 1200  # seconds a test


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_TIMEOUT))


DDPM = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def ddpm_cli(tmp_path: Path) -> DDPM:
    """Run `ddpm ARGUMENTS…` in a subprocess, by default in `tmp_path`, and return the completed process.

    `env` adds to the environment. A non-zero exit raises nothing: check `.returncode`.
    """

    def run(
        *arguments: str, cwd: Path = tmp_path, env: dict[str, str] | None = None, timeout: float = 240
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "ddpm", *arguments],
            cwd=cwd,
            env=os.environ | (env or {}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run


@pytest.fixture(scope="session")
def real_mnist() -> Path:
    """Return the folder with the real MNIST in torchvision's layout; skip the test where there is none."""
    folder = Path(os.environ.get("DDPM_DATA_DIR", "~/.cache/ddpm")).expanduser()
    if not any((folder / "MNIST" / "raw").glob("train-images-idx3-ubyte*")):
        pytest.skip("no real MNIST here: set DDPM_DATA_DIR to a folder with MNIST/raw/train-images-idx3-ubyte")
    return folder
