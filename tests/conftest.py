"""For all tests: shapes checked at run time, one thread per process, the command line, the real MNIST."""

import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

# Before torch is imported, and for child processes too: the last bit of a sum depends on the number of threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from jaxtyping import install_import_hook

# Before ddpm is imported: the hook changes modules while they are loaded.
install_import_hook(["ddpm.diffusion", "ddpm.models"], "beartype.beartype")

from command_line import Answer, run_here, run_process  # noqa: E402

# A shell starts background jobs with SIGINT ignored, nohup its command with SIGHUP, and child processes inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
for name in ("DDPM_DEBUG", "HYDRA_FULL_ERROR", "COMP_LINE"):
    os.environ.pop(name, None)  # they change what the program prints
# Tests run commands in folders of their own, where a relative path would point elsewhere.
if "DDPM_DATA_DIR" in os.environ:
    os.environ["DDPM_DATA_DIR"] = str(Path(os.environ["DDPM_DATA_DIR"]).expanduser().resolve())

SLOW_TIMEOUT = 1200  # seconds a test


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cuda", help="where tests marked cuda run; cpu tries them without a GPU")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    needs_gpu = config.getoption("--device") == "cuda" and not torch.cuda.is_available()
    for item in items:
        if needs_gpu and item.get_closest_marker("cuda"):
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU; scripts/gpu runs it there"))
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_TIMEOUT))


@pytest.fixture
def gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the accelerator of a test marked cuda: "cuda", or what --device says."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # it rounds float32 to 10 bits
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic matrix products need it
    return str(request.config.getoption("--device"))


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> str:
    """Return the accelerator of a test that runs on the CPU, and on a GPU where there is one."""
    return str(request.getfixturevalue("gpu") if request.param == "cuda" else request.param)


@pytest.fixture
def ddpm_cli(tmp_path: Path) -> Callable[..., Answer]:
    """Run `ddpm ARGUMENTS…` in a process of its own, by default in `tmp_path`: `run_process` of helpers/command_line.

    A non-zero exit raises nothing: check `.returncode`. Use `ddpm_here` unless the process is what is tested.
    """
    return partial(run_process, cwd=tmp_path)


@pytest.fixture
def ddpm_here(tmp_path: Path) -> Callable[..., Answer]:
    """Run `ddpm ARGUMENTS…` in this process, by default in `tmp_path`: `run_here` of helpers/command_line."""
    return partial(run_here, cwd=tmp_path)


@pytest.fixture(scope="session")
def real_mnist() -> Path:
    """Return the folder with the real MNIST in torchvision's layout; skip the test where there is none."""
    folder = Path(os.environ.get("DDPM_DATA_DIR", "~/.cache/ddpm")).expanduser()
    if not any((folder / "MNIST" / "raw").glob("train-images-idx3-ubyte*")):
        pytest.skip("no real MNIST here: set DDPM_DATA_DIR to a folder with MNIST/raw/train-images-idx3-ubyte")
    return folder


@pytest.fixture
def fashion_mnist(tmp_path: Path) -> Path:
    """Return a folder with Fashion-MNIST from Debian's package dataset-fashion-mnist; skip where it is absent."""
    installed = Path("/usr/share/datasets/fashion-mnist")
    if not installed.is_dir():
        pytest.skip("needs Debian's package dataset-fashion-mnist")
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for file in installed.glob("*.gz"):
        (raw / file.name).symlink_to(file)
    return tmp_path
