import subprocess
import sys
from pathlib import Path

import pytest
from hydra.errors import InstantiationException
from omegaconf import OmegaConf

from ddpm.config import build, conf_dir
from ddpm.errors import UserError

CONFIG = OmegaConf.create(
    {
        "plain": {"_target_": "builtins.dict", "a": [1, {"b": 2}]},
        "fraction": {"_target_": "fractions.Fraction", "numerator": 3, "denominator": 4},
        "bad": {"_target_": "fractions.Fraction", "numerator": "seven"},
        "outer": {"inner": {"_target_": "builtins.dict", "a": "${bad}"}},
        "bug": {"_target_": "fractions.Fraction", "numerator": 1, "denominator": 0},
    }
)


def test_build_makes_the_object():
    assert build(CONFIG.fraction) == 0.75


def test_the_object_gets_plain_lists_and_dicts():
    made = build(CONFIG.plain)
    assert (type(made["a"]), type(made["a"][1])) == (list, dict)


def test_build_passes_arguments_of_run_time_on():
    assert build(CONFIG.fraction, denominator=8) == 0.375


@pytest.mark.parametrize(("node", "key"), [("bad", "bad"), ("outer.inner", "outer.inner.a")])
def test_a_value_error_becomes_a_users_error_in_the_librarys_own_words(node, key):
    with pytest.raises(UserError) as caught:
        build(OmegaConf.select(CONFIG, node))
    assert str(caught.value) == f"Invalid literal for Fraction: 'seven'\n(from `{key}` in the config)"


def test_another_error_passes_as_it_is():
    with pytest.raises(InstantiationException, match="ZeroDivisionError"):
        build(CONFIG.bug)


def test_the_config_tree_is_the_clones():
    assert conf_dir() == Path(__file__).resolve().parents[2] / "conf"
    assert (conf_dir() / "train.yaml").is_file()


def test_configs_are_found_without_loading_torch():
    code = "import ddpm, ddpm.config, ddpm.errors, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
