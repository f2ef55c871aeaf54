"""What is a secret, and where it is masked."""

import io
import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from ddpm import secrets
from ddpm.runs import log_to, run_name
from ddpm.runs.status import MAX_ERROR, Status, write_json
from ddpm.secrets import GuardedStream, is_secret, learn, learn_from, mask, mask_override, mask_values


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    monkeypatch.setattr(secrets, "_known", set())


NAMES = (
    "password db_password DB_PASSWORD PGPASSWORD passwd pw pwd db_pass api_key apiKey wandb.api_key token hf_token "
    "my-token token1 secret client_secret AWS_SECRET_ACCESS_KEY authorization basic_auth proxy_auth sig credentials"
)
OTHERS = (
    "tokens num_tokens token_dim token_mixer tokenizer TOKENIZERS_PARALLELISM author monitor PWD OLDPWD key public_key "
    "secret_file AWS_ACCESS_KEY_ID SSH_AUTH_SOCK XAUTHORITY compass bypass logger.x.token.file"
)


def test_the_names_of_secrets():
    assert [name for name in NAMES.split() if not is_secret(name)] == []
    assert [name for name in OTHERS.split() if is_secret(name)] == []


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("mysql://me:p@ss/w@host/db", "mysql://me:***@host/db"),
        ("sqlite:///a.db?password=abc&x=1", "sqlite:///a.db?password=***&x=1"),
        ("proxy http://:abc@host:80, x", "proxy http://:***@host:80, x"),
        ("git+https://abc@host/x", "git+https://***@host/x"),
        ("{'token': 'a b', 'x': 1}", "{'token': '***', 'x': 1}"),
        ('{"api_key": "a\\"b", "x": 2}', '{"api_key": "***", "x": 2}'),
        ("x:\n  password: correct horse\n  y: 1", "x:\n  password: ***\n  y: 1"),
        ("f(token=a(b,c), x)", "f(token=***), x)"),
        ("root: in x: password=a, b", "root: in x: password=***, b"),
        ("Authorization: Bearer abc", "Authorization: ***"),
        ("a hf_abcdefghijklmnopqrstuv b", "a *** b"),
        ("-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----.", "***."),
        *((text, text) for text in ("token: ${oc.env:X}", "token: null", "http://host:80/a", "ssh://git@host", "a=b")),
        ("KeyError: 'token'", "KeyError: 'token'"),
    ],
)
def test_text_is_masked(text, masked):
    assert mask(text) == masked


def test_a_secret_that_was_seen_once_is_masked_in_any_text():
    learn_from([("DB", "mysql://me:s3cret@host"), ("X_TOKEN", "p/q r-5"), ("A_TOKEN", "short"), ("PATH", "/usr/bin")])
    assert mask("s3cret in words, p%2Fq%20r-5, p/q r-5") == "*** in words, ***, ***"
    assert mask("short s3cretly /usr/bin") == "short s3cretly /usr/bin"


def test_values_of_a_config_are_masked():
    config = {"a": {"token": "x", "password": 1234, "b": [1, "db://v:w@h"]}, "credentials": {"user": "me", "on": True}}
    assert mask_values(config) == {
        "a": {"token": "***", "password": "***", "b": [1, "db://v:***@h"]},
        "credentials": {"user": "***", "on": True},
    }
    assert mask_values(None) is None
    assert mask_override("+callbacks.x.token='a b'") == "+callbacks.x.token=***"
    assert run_name(["callbacks.x.token=abc", "seed=1"]).startswith("callbacks.x.token_seed-1.")


def test_files_of_a_run_hold_no_secret(tmp_path):
    learn("s3cret-9")
    write_json(tmp_path / "a.json", {"token": "x", "line": "in s3cret-9", "name": "a\udcff"})
    assert json.loads((tmp_path / "a.json").read_text()) == {"token": "***", "line": "in ***", "name": "a\udcff"}
    with log_to(tmp_path / "log.txt"):
        logging.getLogger().warning("password=%s", "x")
    with pytest.raises(ValueError, match="s3cret-9"), log_to(tmp_path / "log.txt"):
        raise ValueError("s3cret-9")
    text = (tmp_path / "log.txt").read_text()
    assert "password=***" in text
    assert "ValueError: ***" in text
    assert "s3cret-9" not in text.replace('ValueError("s3cret-9")', "")  # a line of this file


def test_status_json_stays_small(tmp_path):
    status = Status(error="first " + "x" * 10_000_000 + " last")
    status.write(tmp_path)
    assert (tmp_path / "status.json").stat().st_size < 2 * MAX_ERROR
    error = Status.read(tmp_path).error
    assert error.startswith("first xxx")
    assert error.endswith("xxx last")
    assert "log.txt" in error


def test_a_guarded_stream_is_the_stream():
    stream = GuardedStream(io.StringIO())
    print("token=abc", file=stream)
    stream.writelines(["password: x\n", "y"])
    assert stream.getvalue() == "token=***\npassword: ***\ny"
    assert not stream.isatty()


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--cfg", "job", "+callbacks.x.token=hunter2-abc", "paths.data='http://u:hunter2-abc@h'"],
        ["train", "a.password=hunter2-abc("],
    ],
)
def test_the_screen_shows_no_secret(tmp_path: Path, arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ddpm", *arguments],
        cwd=tmp_path,
        env={"PATH": "", "MY_TOKEN": "hunter2-abc", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert "***" in done.stdout + done.stderr
    assert "hunter2" not in done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []
