import re
import shutil
import subprocess
import sys

import pytest
from hydra import compose, initialize_config_dir

import ddpm
from ddpm.__main__ import split_command
from ddpm.commands import COMMANDS
from ddpm.config import conf_dir


def test_without_arguments_it_lists_the_commands(ddpm_here):
    answer = ddpm_here()
    assert answer.returncode == 0
    assert all(re.search(rf"^  {command} +\w", answer.stdout, re.MULTILINE) for command in COMMANDS)
    assert ddpm_here("--help").stdout == answer.stdout
    assert ddpm_here("--version").stdout == f"ddpm {ddpm.__version__}\n"


def test_python_m_is_the_same_program_and_help_is_light():
    command = [sys.executable, "-X", "importtime", "-m", "ddpm", "--help"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "Commands\n  train" in answer.stdout
    imported = {line.rpartition("|")[2].strip() for line in answer.stderr.splitlines()}
    assert "ddpm" in imported
    assert not {"hydra", "torch"} & imported


@pytest.mark.parametrize(
    ("arguments", "command", "hydra"),
    [
        ("train seed=1 -m", "train", "--config-name train -m seed=1"),
        ("train seed=1,2 --multirun dry_run=true", "train", "--config-name train --multirun seed=1,2 dry_run=true"),
        ("train -cn mine", "train", "--config-name train -cn mine"),
        ("train seed=1 --info", "train", "--config-name train --info=all seed=1"),
        ("train --info seed=1", "train", "--config-name train --info=all seed=1"),
        ("train seed=1 -i defaults", "train", "--config-name train -i defaults seed=1"),
        ("--hydra-help", None, "--hydra-help"),
        ("-sc install=bash", None, "-sc install=bash"),
    ],
)
def test_the_command_is_the_config_name(arguments, command, hydra):
    assert split_command(arguments.split()) == (command, hydra.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("trian", "Did you mean 'train'?"),
        ("xyz -m", "no command 'xyz'.\nCommands: train"),
        ("seed=1", "`ddpm train seed=1`"),
    ],
)
def test_an_unknown_command(capsys, arguments, message):
    with pytest.raises(SystemExit, match="2"):
        split_command(arguments.split())
    assert message in capsys.readouterr().err


def test_a_job_leaves_no_file(run, work):
    answer = run("ddpm", "toy", "speed=fast")
    assert (answer.returncode, answer.stderr) == (0, "")
    assert re.fullmatch(r"\[\d\d:\d\d:\d\d\] done with 10 steps, seed 0, swept \n", answer.stdout)
    assert list(work.iterdir()) == []


def test_help_of_a_command_and_its_config(ddpm_here):
    answer = ddpm_here("toy", "--help")
    assert (answer.returncode, answer.stderr) == (0, "")
    assert "speed: fast, slow" in answer.stdout
    answer = ddpm_here("toy", "speed=fast", "--cfg", "job")
    assert answer.stdout == "speed:\n  num_steps: 10\nseed: 0\nhow: well\ndry_run: false\nckpt: outputs/a\n"
    assert "== Hydra ==" not in ddpm_here("--hydra-help").stderr


def test_every_command_has_help():
    """The toy command shows that Hydra prints the template."""
    for command in COMMANDS:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            shown = compose(command, return_hydra_config=True).hydra.help
        assert shown.header.startswith(f"ddpm {command}: ")
        assert "$CONFIG" in shown.template


def test_the_config_of_training_needs_neither_torch_nor_pydantic(run):
    answer = run("ddpm", "train", "--cfg", "job")
    assert (answer.returncode, answer.stderr) == (0, "")


def test_a_mistake_is_one_line_and_debug_shows_its_traceback(ddpm_here, environment, monkeypatch):
    answer = ddpm_here("toy", "how=mistaken")
    assert (answer.returncode, answer.stdout) == (1, "")
    assert answer.stderr == "ddpm toy: seed 0 cannot be halved\n"
    monkeypatch.setitem(environment, "DDPM_DEBUG", "1")
    answer = ddpm_here("toy", "how=mistaken")
    assert answer.returncode == 1
    assert "Traceback" in answer.stderr
    assert answer.stderr.endswith("UserError: seed 0 cannot be halved\n")


def test_an_unexpected_error_keeps_its_traceback(ddpm_here):
    answer = ddpm_here("toy", "how=broken")
    assert answer.returncode == 1
    assert "Traceback" in answer.stderr
    assert "toy.py" in answer.stderr
    assert answer.stderr.endswith("ZeroDivisionError: seed 0\n")


def test_an_interrupt_is_one_line(ddpm_here):
    answer = ddpm_here("toy", "how=interrupted")
    assert (answer.returncode, answer.stderr) == (130, "ddpm: interrupted\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["toy", "sede=1"], ["ddpm toy: Could not override 'sede'. Did you mean seed?"]),
        (["toy", "speed=fats"], ["Could not find 'speed/fats'. Did you mean fast?", "Options of speed: fast, slow"]),
        (["toy", "sampler=ddim"], ["Could not override 'sampler'"]),
        (["toy", "seed=[1"], ["cannot read seed=[1: ", "at input '[1'"]),
        (["toy", "ckpt=/a/epoch=3.ckpt"], ["\n  ddpm toy 'ckpt=\"/a/epoch=3.ckpt\"'"]),
        (["toy", "seed=1", "--multirunn"], ["there is no flag --multirunn. Did you mean --multirun?"]),
        (["toy", "fast"], ["'fast' is no override: write key=value."]),
        (["toy", "~sede"], ["'sede' does not exist. Did you mean seed?"]),
        (["toy", "how=mistaken", "seed='\x1b[2J\u202e'"], ["seed \\x1b[2J\\u202e cannot"]),
        (["toy", "seed=1,2"], ["Ambiguous value for argument 'seed=1,2'", "--multirun"]),
        (["toy", "-cn", "toy_without"], ["ddpm toy: ckpt must be given", "ddpm toy ckpt=outputs/train"]),
        (["toy", "seed='${sede}'"], ["ddpm toy: seed: Interpolation key 'sede' not found"]),
        (["toy", "-m", "--cfg", "job"], ["Only one of --run, "]),
        (["toy", "--resolve"], ["The --resolve flag can only be used"]),
        (["-m"], ["the command comes first"]),
    ],
)
def test_a_mistake_in_the_config_gives_plain_lines(ddpm_here, arguments, words):
    answer = ddpm_here(*arguments)
    assert answer.returncode == 1
    assert "Traceback" not in answer.stderr
    assert "HYDRA_FULL_ERROR" not in answer.stderr
    assert all(word in answer.stderr for word in words), answer.stderr


COMPLETIONS = {
    "ddpm ": {*COMMANDS, "toy"},
    "ddpm t": {"train", "toy"},
    "ddpm toy spe": {"speed=", "speed."},
    "ddpm toy speed=": {"speed=slow", "speed=fast"},
    "ddpm toy speed=fast speed.": {"speed.num_steps="},
    "  ddpm  toy   see": {"seed="},
    "ddpm toy -m see": {"seed="},
    "ddpm nothing s": set(),
}

# Calls the completion function with the variables that bash sets.
ASK = """
for COMP_LINE in "$@"; do
    COMP_POINT=${#COMP_LINE}
    COMP_WORDS=($COMP_LINE)
    COMP_CWORD=${#COMP_WORDS[@]}
    [[ $COMP_LINE != *" " ]] && COMP_CWORD=$((COMP_CWORD - 1))
    COMPREPLY=()
    hydra_bash_completion
    echo "${COMPREPLY[*]}"
done
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_completion_in_bash(run):
    """One shell runs the function that `-sc install=bash` prints, for all lines."""
    install = run("ddpm", "-sc", "install=bash")
    assert (install.returncode, install.stderr) == (0, "")
    answer = run("bash", "-c", f"{install.stdout}\n{ASK}", "bash", *COMPLETIONS)
    assert answer.stderr == ""
    found = [set(line.split()) for line in answer.stdout.splitlines()]
    assert dict(zip(COMPLETIONS, found, strict=True)) == COMPLETIONS
