"""The config in a run's directory, and the check that a run continues with the same one."""

from pathlib import Path

import pytest

from ddpm.errors import UserError
from ddpm.runs import check_same_config, write_config

CONFIG = {
    "seed": 0,
    "model": {"channels": [8, 16], "name": "ü"},
    "trainer": {"devices": 1, "devices_more": 1},
    "logger": {"folder": "out/train/a/events", "other": "out/trainer"},
    "paths": {"outputs": "out", "run": "out/train/a", "data": None},
}


def changed(**parts: object) -> dict[str, object]:
    """CONFIG with some parts replaced."""
    return {**CONFIG, **parts}


def test_the_same_config_is_accepted_also_after_a_move(tmp_path: Path) -> None:
    check_same_config(tmp_path, CONFIG, [])  # no config is saved yet
    write_config(tmp_path, CONFIG)
    assert "ü" in (tmp_path / "config.yaml").read_text(encoding="utf-8")
    moved = changed(
        logger={"folder": "new/place/events", "other": "new/trainer"},
        paths={"outputs": "new", "run": "new/place", "data": None},
    )
    for config in (CONFIG, moved):
        check_same_config(tmp_path, config, ["paths"])


def test_another_config_is_refused_with_the_difference(tmp_path: Path) -> None:
    write_config(tmp_path, CONFIG)
    other = changed(seed=1, model={"channels": [8, 32]}, trainer={"devices": 2, "devices_more": 2})
    with pytest.raises(UserError, match="holds a run with another config") as refused:
        check_same_config(tmp_path, other, ["paths", "trainer.devices"])
    assert [line for line in str(refused.value).splitlines() if line.startswith("  ")] == [
        "  model.channels: [8, 16] there, [8, 32] now",
        "  model.name: ü there, absent now",
        "  seed: 0 there, 1 now",
        "  trainer.devices_more: 1 there, 2 now",
    ]
    check_same_config(tmp_path, other, ["paths", "seed", "model", "trainer"])


def test_a_folder_is_compared_by_its_whole_name(tmp_path: Path) -> None:
    """out/trainer is not below the folder out/train."""
    paths = {"run": "out/train"}
    write_config(tmp_path, {"folder": "out/trainer", "paths": paths})
    with pytest.raises(UserError, match="folder: out/trainer there, new/trainer now"):
        check_same_config(tmp_path, {"folder": "new/trainer", "paths": {"run": "new/train"}}, ["paths"])


def test_a_damaged_config_is_refused(tmp_path: Path) -> None:
    for damage in (b"a: [", b"\xff", b"", b"[1]"):
        (tmp_path / "config.yaml").write_bytes(damage)
        with pytest.raises(UserError, match=r"config\.yaml is damaged: remove it to continue the run"):
            check_same_config(tmp_path, CONFIG, [])
