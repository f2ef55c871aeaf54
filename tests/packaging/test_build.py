"""Building objects from configs, and finding the configs, in the clone."""

import subprocess
import sys
from pathlib import Path

import pytest
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


def test_build_instantiates_with_the_arguments_of_the_config_and_of_the_call():
    assert build(CONFIG.fraction) == 0.75
    assert build(CONFIG.fraction, denominator=8) == 0.375


def test_the_object_gets_plain_lists_and_dicts():
    built = build(CONFIG.plain)
    assert (type(built["a"]), type(built["a"][1])) == (list, dict)


def test_a_value_error_becomes_a_user_error_with_the_message_of_the_library():
    for node, key in (("bad", "bad"), ("outer.inner", "outer.inner.a")):
        with pytest.raises(UserError) as caught:
            build(OmegaConf.select(CONFIG, node))
        assert str(caught.value) == f"Invalid literal for Fraction: 'seven'\n(from `{key}` in the config)"


def test_any_other_error_is_named():
    with pytest.raises(UserError, match=r"Fraction'\W+ZeroDivisionError: .*DDPM_DEBUG=1 shows where.*\n.*`bug`"):
        build(CONFIG.bug)


def test_an_object_of_another_class_is_refused():
    with pytest.raises(UserError, match=r"fractions\.Fraction gives a Fraction, and a str is needed"):
        build(CONFIG.fraction, str)


def test_a_clone_uses_its_own_config_tree():
    assert conf_dir() == Path(__file__).resolve().parents[2] / "conf"
    assert (conf_dir() / "train.yaml").is_file()


def test_configs_are_found_without_loading_torch():
    code = "import ddpm, ddpm.config, ddpm.errors, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
