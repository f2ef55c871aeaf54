"""The page of equations, src/ddpm/diffusion/README.md, names code and tests that exist."""

import importlib
import re
from functools import reduce
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "src/ddpm/diffusion/README.md").read_text(encoding="utf-8")
ENTRIES = re.findall(r"^- Code: (.*)\n- Test: ((?:.+\n)+)", PAGE, flags=re.MULTILINE)
CODE = {name for code, _ in ENTRIES for name in re.findall(r"`([^`]+)`", code)}
TESTS = {name for _, tests in ENTRIES for name in re.findall(r"`([^`]+)`", tests)}


def resolve(name: str) -> object:
    """Return the object `name`, which is `GaussianDiffusion.method` or `module.name`, of ddpm.diffusion."""
    if name.startswith("GaussianDiffusion."):
        name = f"process.{name}"
    module, *rest = name.split(".")
    return reduce(getattr, rest, importlib.import_module(f"ddpm.diffusion.{module}"))


def test_every_equation_names_code_and_tests_that_exist() -> None:
    assert len(ENTRIES) == PAGE.count("- Code:") == PAGE.count("- Test:") > 0
    for name in CODE:
        assert callable(resolve(name)), name
    for name in TESTS:
        file, function = name.split("::")
        assert f"\ndef {function}(" in (ROOT / "tests/diffusion" / file).read_text(encoding="utf-8"), name


def test_every_schedule_loss_and_sampler_of_conf_has_an_equation() -> None:
    explained = {resolve(name.removesuffix(".step")) for name in CODE}
    for group in ("schedule", "objective", "sampler"):
        for path in (ROOT / "conf" / group).rglob("*.yaml"):
            if path.stem == "guidance_distillation":  # in ddpm.training, because it loads models
                continue
            (target,) = re.findall(r"_target_: ddpm\.diffusion\.(\S+)", path.read_text(encoding="utf-8"))
            assert resolve(target) in explained, target


def test_formulas_are_written_so_that_every_host_renders_them() -> None:
    r"""Between $` and `$, or in a math block: in $…$ GitHub reads Markdown such as _ and * first, and \operatorname
    is not allowed there."""
    prose = re.sub(r"^```.*?^```", "", PAGE, flags=re.MULTILINE | re.DOTALL)
    assert "$" not in re.sub(r"\$`[^`]+`\$", "", prose)
    assert r"\operatorname" not in PAGE
