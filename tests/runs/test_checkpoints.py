import pickle
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from ddpm.config import check_targets, trusted_targets
from ddpm.errors import UserError
from ddpm.runs.checkpoints import FORMAT, config_of, find_checkpoint, load_checkpoint


def make_run(directory: Path, *names: str) -> Path:
    (directory / "checkpoints").mkdir(parents=True)
    for name in names:
        (directory / "checkpoints" / f"{name}.ckpt").touch()
    return directory


@pytest.mark.parametrize(
    ("spec", "found"),
    [
        ("both", "both/checkpoints/best.ckpt"),
        ("both/", "both/checkpoints/best.ckpt"),
        ("both/last", "both/checkpoints/last.ckpt"),
        ("both/best", "both/checkpoints/best.ckpt"),
        ("both/checkpoints", "both/checkpoints/best.ckpt"),
        ("young", "young/checkpoints/last.ckpt"),
        ("young/checkpoints/last.ckpt", "young/checkpoints/last.ckpt"),
    ],
)
def test_find(tmp_path, spec, found):
    make_run(tmp_path / "both", "best", "last")
    make_run(tmp_path / "young", "last")
    assert find_checkpoint(f"{tmp_path}/{spec}") == tmp_path / found


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("young/best", r"young has no checkpoint checkpoints/best.ckpt"),
        ("empty", r"empty has no checkpoint checkpoints/best.ckpt or checkpoints/last.ckpt"),
        ("yuong", r"there is no checkpoint or run at .*yuong; nearby: .*young"),
        ("young/other", r"there is no checkpoint or run at .*young/other"),
        ("no/such/folder/last", r"there is no checkpoint or run at .*last; nearby: .*young"),
    ],
)
def test_find_nothing(tmp_path, spec, message):
    make_run(tmp_path / "young", "last")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=message):
        find_checkpoint(f"{tmp_path}/{spec}")


def test_an_empty_spec_is_refused():
    with pytest.raises(UserError, match="ckpt is empty"):
        find_checkpoint(" ")


def test_at_most_five_runs_are_listed(tmp_path, monkeypatch):
    for i in range(7):
        make_run(tmp_path / "outputs" / "train" / "default" / f"seed-{i}", "last", "best")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        find_checkpoint("typo")
    assert str(error.value).count("outputs/train/default/seed-") == 5


def save(path: Path, checkpoint: object) -> Path:
    torch.save(checkpoint, path)
    return path


OURS = {"format": FORMAT, "state_dict": {"w": torch.arange(1000.0)}, "hyper_parameters": {"config": {"seed": 0}}}


def test_load(tmp_path):
    checkpoint = load_checkpoint(save(tmp_path / "a.ckpt", OURS))
    assert checkpoint["hyper_parameters"]["config"] == {"seed": 0}
    assert torch.equal(checkpoint["state_dict"]["w"], torch.arange(1000.0))


class Payload:
    def __reduce__(self):
        return (pytest.fail, ("code of a checkpoint was run",))


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    with pytest.raises(UserError, match="could run code"):
        load_checkpoint(save(tmp_path / "a.ckpt", OURS | {"extra": Payload()}))


def test_a_checkpoint_of_another_format_is_refused(tmp_path):
    with pytest.raises(UserError, match=f"has format 0, and this version of ddpm reads format {FORMAT}"):
        load_checkpoint(save(tmp_path / "a.ckpt", OURS | {"format": 0}))


def test_a_model_made_without_a_config_says_how_to_load_it(tmp_path):
    with pytest.raises(UserError, match="load_from_checkpoint"):
        config_of(OURS | {"hyper_parameters": {"config": None}}, tmp_path / "a.ckpt")


def test_a_checkpoint_of_another_project(tmp_path):
    for foreign in ({"state_dict": {}}, {"state_dict": {}, "hyper_parameters": {"lr": 1}}, [1, 2]):
        with pytest.raises(UserError, match="not a checkpoint of ddpm"):
            load_checkpoint(save(tmp_path / "a.ckpt", foreign))


@pytest.mark.parametrize("content", [b"", b"hello", pickle.dumps({"state_dict": {}})])
def test_a_file_that_is_no_checkpoint(tmp_path, content):
    (tmp_path / "a.ckpt").write_bytes(content)
    with pytest.raises(UserError, match="not a checkpoint"):
        load_checkpoint(tmp_path / "a.ckpt")


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        load_checkpoint(tmp_path / "a.ckpt")


def test_a_truncated_checkpoint(tmp_path):
    path = save(tmp_path / "a.ckpt", OURS)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="damaged"):
        load_checkpoint(path)


def test_a_flipped_bit(tmp_path):
    path = save(tmp_path / "a.ckpt", OURS)
    content = bytearray(path.read_bytes())
    content[content.index(torch.tensor([500.0]).numpy().tobytes()) + 1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="checksum"):
        load_checkpoint(path)


def test_targets_are_those_of_the_users_yamls(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "net.yaml").write_text(
        "_target_: my.Net\nblocks: [{_target_: my.Block}]\n# _target_: my.Old\n"
    )
    (tmp_path / "broken.yaml").write_text("a: [")
    trusted = trusted_targets([tmp_path])
    assert trusted == {"my.Net", "my.Block"}
    check_targets({"model": {"_target_": "my.Net", "blocks": [{"_target_": "my.Block"}], "size": 3}}, trusted)


EVIL = [
    {"_target_": "os.system", "command": "true"},
    {"model": {"_target_": "my.Net", "norm": [{"deep": {"_target_": "torch.load"}}]}},
    {"model": ({"_target_": "torch.load"},)},
    {"model": {"_target_": ["torch.load"]}},
    {"model": {"_target_": "${other}", "other": "my.Net"}},
    {"model": {"_target_": "my.Net", "size": "${oc.decode:'{_target_: os.system}'}"}},
]


@pytest.mark.parametrize("config", EVIL)
@pytest.mark.parametrize("wrap", [lambda config: config, OmegaConf.create], ids=["dict", "omegaconf"])
def test_other_targets_are_refused(config, wrap):
    with pytest.raises(UserError, match=r"no YAML of your configs|not trusted"):
        check_targets(wrap(config), {"my.Net"})
