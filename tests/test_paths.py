"""What a path in a setting means, and how a value is typed."""

import os
import pwd
import shlex
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from ddpm.commands import display
from ddpm.config import override, user_path
from ddpm.errors import UserError
from ddpm.launch.overrides import with_user_paths


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory; HOME is beside it."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "here"


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("outputs/", "outputs"),
        ("./a//b/.", "a/b"),
        ("~", "../home"),
        ("~/out", "../home/out"),
        ("./~/out", "~/out"),
        ("a~", "a~"),
        ("../out", "../out"),
        ("a/../b", "b"),
        ("a b/é=1&(2)[3]{4};'\"#!,", "a b/é=1&(2)[3]{4};'\"#!,"),
        ("$HOME/*?", "$HOME/*?"),
        ("/x/..", "/"),
    ],
)
def test_a_path_means_what_a_shell_means(here, typed, meant):
    path = user_path(typed)
    assert os.path.abspath(path) == os.path.abspath(meant)
    assert ".." not in path.parts


def test_dots_leave_the_folder_that_a_link_points_to(here):
    (here / "real/deep").mkdir(parents=True)
    (here / "link").symlink_to("real/deep")
    assert user_path("link/../x") == Path("real/x")
    assert user_path("link/x") == Path("link/x")


def test_home_folders_of_users(here):
    user = pwd.getpwuid(os.getuid())
    assert user_path(f"~{user.pw_name}/x") == Path(user.pw_dir) / "x"
    with pytest.raises(UserError, match="no home folder ~nobody-of-this-name"):
        user_path("~nobody-of-this-name/x")
    for empty in ("", " "):
        with pytest.raises(UserError, match="a path is empty"):
            user_path(empty)


def test_the_folder_of_configs_is_a_path_too(here):
    home = str(here.parent / "home")
    assert with_user_paths(["--config-dir=~/c", "a=~/x"]) == [f"--config-dir={home}/c", "a=~/x"]
    assert with_user_paths(["-cd", "~/c", "-m"]) == ["-cd", f"{home}/c", "-m"]


VALUES = [
    "a",
    "a b",
    "a=b",
    "é",
    "a'b",
    'a"b',
    'a\\"b',
    "a\\",
    'a\\\\"',
    "5",
    "true",
    "[1]",
    "{a:b}",
    "a,b",
    "$x",
    "a#b",
]
VALUES += ["~/x", " a ", "(x)", "a&b;c", "x:y", '"a"', "*?", "choice(1,2)", "null"]


@pytest.mark.parametrize("value", VALUES)
def test_an_override_can_be_typed_in_a_shell(value):
    (word,) = shlex.split(override("ckpt", value))
    assert OverridesParser.create().parse_override(word).value() == value


def test_the_terminal_shows_names_as_they_are(capsys, monkeypatch):
    monkeypatch.setattr(display.console, "_file", None)
    display.results(Path("a[bold]b\x1b[31m"), ["x\u202e", ":smile:"], [f"ddpm sample {override('ckpt', 'a=b')}"])
    display.metrics_table("[red]t[/red]", {"[b]": 1.0})
    shown = capsys.readouterr().out
    assert (
        "Results in a[bold]b\\x1b[31m\n  x\\u202e\n  :smile:\nNext\n  ddpm sample 'ckpt=\"a=b\"'\n[red]t[/red]" in shown
    )
    assert "│ [b]" in shown
