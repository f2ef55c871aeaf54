import re
import shutil
import subprocess
import sys

import pytest

from ddpm.__main__ import COMMANDS, split_command


def test_alone_it_lists_the_commands(run):
    answer = run("ddpm")
    assert answer.returncode == 0
    assert all(re.search(rf"^  {command} +\w", answer.stdout, re.MULTILINE) for command in COMMANDS)


def test_help_is_the_list_and_python_m_is_the_same_program():
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
        ("train seed=1 -m dry_run=true", "train", "--config-name train -m seed=1 dry_run=true"),
        ("-m train seed=1,2", "train", "--config-name train -m seed=1,2"),
        ("train -cn mine", "train", "--config-name train -cn mine"),
        ("--config-name train seed=1", "train", "--config-name train seed=1"),
        ("--config-name train --config-name mine", "train", "--config-name train --config-name mine"),
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
        ("-m seed=1", "`ddpm train seed=1`"),
    ],
)
def test_an_unknown_command(capsys, arguments, message):
    with pytest.raises(SystemExit, match="2"):
        split_command(arguments.split())
    assert message in capsys.readouterr().err


def test_a_job_leaves_no_trace(run, tmp_path):
    answer = run("ddpm", "toy", "speed=fast")
    assert (answer.returncode, answer.stderr) == (0, "")
    assert re.fullmatch(r"\[\d\d:\d\d:\d\d\] done with 10 steps, seed 0\n", answer.stdout)
    assert list((tmp_path / "work").iterdir()) == []


def test_help_of_a_command_and_its_config(run):
    answer = run("ddpm", "toy", "--help")
    assert answer.returncode == 0
    assert "speed: fast, slow" in answer.stdout
    answer = run("ddpm", "toy", "--cfg", "job", "speed=fast")
    assert answer.stdout == "speed:\n  num_steps: 10\nseed: 0\nhow: well\ndry_run: false\nckpt: outputs/a\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(run, command):
    answer = run("ddpm", command, "--help")
    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout.startswith(f"ddpm {command}: ")
    assert "paths:" in answer.stdout


def test_a_mistake_is_one_line(run):
    answer = run("ddpm", "toy", "how=mistaken")
    assert (answer.returncode, answer.stdout) == (1, "")
    assert answer.stderr == "ddpm toy: seed 0 cannot be halved\n"


def test_debug_shows_where_a_mistake_was_found(run):
    answer = run("ddpm", "toy", "how=mistaken", DDPM_DEBUG="1")
    assert answer.returncode == 1
    assert "Traceback" in answer.stderr
    assert "seed 0 cannot be halved" in answer.stderr


def test_an_unexpected_error_keeps_its_traceback(run):
    answer = run("ddpm", "toy", "how=broken")
    assert answer.returncode == 1
    assert "Traceback" in answer.stderr
    assert "toy.py" in answer.stderr
    assert answer.stderr.endswith("ZeroDivisionError: seed 0\n")


def test_an_interrupt_is_one_line(run):
    answer = run("ddpm", "toy", "how=interrupted")
    assert (answer.returncode, answer.stderr) == (130, "ddpm: interrupted\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["toy", "sede=1"], ["Could not override 'sede'", "+sede=1"]),
        (["toy", "speed=fats"], ["Could not find 'speed/fats'", "fast", "slow"]),
        (["toy", "sampler=ddim"], ["Could not override 'sampler'"]),
        (["toy", "seed=[1"], ["at input '[1'"]),
        (["toy", "seed=1,2"], ["Ambiguous value for argument 'seed=1,2'", "--multirun"]),
        (["toy", "-cn", "toy_without"], ["ddpm toy: ckpt must be given", "ddpm toy ckpt=outputs/train"]),
        (["toy", "seed='${sede}'"], ["ddpm toy: Interpolation key 'sede' not found", "full_key: seed"]),
        (["-m"], ["a command comes first"]),
    ],
)
def test_a_wrong_config_is_told_in_words_of_hydra(run, arguments, words):
    answer = run("ddpm", *arguments)
    assert answer.returncode == 1
    assert "Traceback" not in answer.stderr
    assert "HYDRA_FULL_ERROR" not in answer.stderr
    assert all(word in answer.stderr for word in words), answer.stderr


def test_a_sweep_goes_on_past_failed_jobs(run, tmp_path):
    answer = run("ddpm", "toy", "seed=1,13,3", "how=well,mistaken", "-m")
    assert answer.returncode == 1
    assert re.findall(r"done with 1000 steps, seed (\d+)", answer.stdout) == ["1", "3"]
    assert "ddpm toy seed=1 how=mistaken: seed 1 cannot be halved\n" in answer.stderr
    assert answer.stderr.count("Traceback") == 1
    assert "ZeroDivisionError: seed 13\n" in answer.stderr
    last = answer.stderr.splitlines()[-1]
    for job in ("seed=1 how=mistaken", "seed=13 how=well", "seed=13 how=mistaken", "seed=3 how=mistaken"):
        assert job in last
    assert "how=well; seed=1 " not in last
    assert list((tmp_path / "work").iterdir()) == []


def test_a_sweep_that_goes_well(run, tmp_path):
    answer = run("ddpm", "-m", "toy", "seed=1,2")
    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout.count("done with") == 2
    assert list((tmp_path / "work").iterdir()) == []


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

ASK = """
COMP_LINE=$1; COMP_POINT=${#1}; COMP_CWORD=$2
hydra_bash_completion
echo "${COMPREPLY[*]}"
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize("line", COMPLETIONS)
def test_completion_in_bash(run, line):
    """The function that `-sc install=bash` prints, called with the variables that bash sets."""
    install = run("ddpm", "-sc", "install=bash")
    assert (install.returncode, install.stderr) == (0, "")
    words = line.split() + [""] * line.endswith(" ")
    answer = run("bash", "-c", install.stdout + ASK, "bash", line, str(len(words) - 1))
    assert answer.stderr == ""
    assert set(answer.stdout.split()) == COMPLETIONS[line]
