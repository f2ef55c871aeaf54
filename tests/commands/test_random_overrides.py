"""`plan` of every command, with random overrides: it returns, or raises a UserError of at most two lines."""

import os
import warnings

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from ddpm.config import conf_dir, leaves
from ddpm.errors import UserError
from ddpm.launch.hydra_internals import as_current_job, share_config_store
from ddpm.launch.jobs import check_values, load_command
from ddpm.launch.overrides import check_choices, parse_overrides

BASE = {
    "train": ["data=mnist_mini", "model=unet_tiny", "trainer=cpu", "debug=fast"],
    "sample": ["ckpt=RUN", "trainer=cpu"],
    "evaluate": ["ckpt=RUN", "trainer=cpu"],
    "denoise": ["trainer=cpu"],
    "report": ["runs=RUN"],
    "export": ["ckpt=RUN", "to=exported"],
}
GROUPS = {
    "train": ["schedule=cosine", "objective=min_snr", "data=image_folder data.root=nowhere", "logger=csv"],
    "sample": ["mode=inpaint", "mode=sdedit", "mode=interpolate", "sampler=dpm_solver"],
}
VALUES = [
    "null", "true", "no", "-1", "0", "1", "2", "7", "0.5", "-0.5", "1e3", "1e-9", "1e30", "100000000000", "nan", "-inf",
    "99999999999999999999", "''", "abc", "' '", "[]", "[1]", "[1,2]", "[[a]]", "{}", "{a:1}", "'../x'", "'~'", "'\x1b'",
]  # fmt: skip


def keys_of(command):
    """All keys of a command's config, of values and of groups of values."""
    config = OmegaConf.to_container(compose(command, BASE[command]), resolve=False)
    found = [key for key, _ in leaves(config)]
    return sorted({*found, *(".".join(key.split(".")[:n]) for key in found for n in range(1, key.count(".") + 1))})


@st.composite
def commands_with_overrides(draw, keys):
    command = draw(st.sampled_from(sorted(BASE)))
    groups = draw(st.sampled_from(["", *GROUPS.get(command, [])])).split()
    key = st.sampled_from([*keys[command], "unknown.key", "mode.strength", "images"])
    override = st.builds("{}{}={}".format, st.sampled_from(["", "", "++"]), key, st.sampled_from(VALUES))
    return command, [*groups, *draw(st.lists(override, min_size=1, max_size=2))]


def plan(command, overrides):
    check_choices(parse_overrides(overrides), [conf_dir()])
    config = compose(command, overrides, return_hydra_config=True)
    with as_current_job(config) as task_config:
        check_values(command, task_config)
        load_command(command).plan(task_config)


@pytest.mark.parametrize("examples", [15, pytest.param(500, marks=pytest.mark.slow)])
def test_random_overrides_are_planned_or_refused(examples, tiny_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    warnings.simplefilter("ignore")

    @settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.deferred(lambda: commands_with_overrides(keys)))
    def check(case):
        command, overrides = case
        message = "refused"
        try:
            plan(command, [*(word.replace("RUN", str(tiny_run)) for word in BASE[command]), *overrides])
        except UserError as error:
            message = str(error)
        except HydraException:  # shown without a traceback
            pass
        assert 1 <= len(message.strip().splitlines()) <= 4
        assert os.listdir() == []

    share_config_store()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        keys = {command: keys_of(command) for command in BASE}
        check()
