"""Recognise secrets, and mask them in all text that leaves the program.

A secret is the value of a name such as `password`, `api_key` or `hf_token`, the password in a URL, or a token of a
known form such as `ghp_…`. A secret found once on the command line, in the environment or in a config is masked
wherever it occurs later, for example in the error message of a library.

Text leaves the program through stdout and stderr (`guard_streams`), and through a run's JSON files, log and config.
"""

import os
import re
import sys
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, TextIO
from urllib.parse import quote, unquote

MASK = "***"

# Matches names without `-`, `_` and spaces. `token` counts only at the end of a name: `token_dim` is a size.
_SECRET_NAME = re.compile(
    r"passw(or)?d|passphrase|secret|credential|apikey|accesskey|accountkey|privatekey|encryptionkey|signingkey"
    r"|authorization|cookie|token(value)?\d*$|pwd\d*$|(^|basic|http|proxy)auth$|signature$|^sig$|^pw$"
    r"|(^|db|user|proxy|smtp)pass$"
)
_NOT_SECRET = re.compile(r"(name|file|path|dir|folder|url|uri|id|type|length|len|size|dim)$", re.IGNORECASE)
# Repetitions are bounded, so that the search takes linear time in long texts (10 MB).
_NAME = re.compile(r"""(?<![\w.@-])(?P<name>[\w.@-]{1,100})(?P<sign>["']?[ \t]*(?:=|:(?!//))[ \t]*)""")
_VALUE = re.compile(
    r""""(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|(?:(?:bearer|basic|token)[ ]+)?[^\s"'&]*[^\s"'&)\]},;]""", re.IGNORECASE
)
_YAML_VALUE = re.compile(r"(?<=: ).+")  # to the end of the line
_URL_PASSWORD = re.compile(
    r"""(?P<start>(?<![a-z0-9+.-])[a-z][a-z0-9+.-]{1,30}://[^\s/:@"']{0,200}:)(?P<value>[^\s"'<>@]{0,300}+(?:@[^\s"'<>@]{0,300}+(?=@))*+)(?=@)""",
    re.IGNORECASE,
)
_URL_TOKEN = re.compile(r"""(?P<start>https?://)(?P<value>[^\s/:@"'<>]{1,300}+)(?=@)""", re.IGNORECASE)
_FORMS = re.compile(
    r"(?P<start>(?<!\w))(?P<value>(?:gh[opsu]_|github_pat_|glpat-|xox[abprs]-|sk-|pk_live_|sk_live_|AKIA|AIza|hf_|npg_)"
    r"[\w-]{16,}|eyJ[\w-]{8,}\.[\w-]+\.[\w-]*"
    r"|https://hooks\.slack\.com/services/\S+|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*-----|\Z))",
    re.DOTALL,
)
_BEARER = re.compile(r"(?P<start>\bbearer\s+)(?P<value>[\w.~+/-]{8,}=*)", re.IGNORECASE)

_known: set[str] = set()


@lru_cache(maxsize=10_000)
def is_secret(name: str) -> bool:
    """Return whether the value of a setting or variable with this name is a secret. Only a key's last part counts."""
    last = re.split(r"[./@]", name)[-1]
    plain = re.sub(r"[^a-z0-9]", "", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", last).lower())
    return bool(_SECRET_NAME.search(plain)) and not _NOT_SECRET.search(last) and last not in ("PWD", "OLDPWD")


def learn(value: object) -> None:
    """Mask this value as a word in all later texts. Short values, which may be common words, are not masked."""
    text = str(value).strip()
    for part in {text, text.strip("\"'"), *re.split(r"""[\s,\[\]{}"']+""", text)}:
        for form in {part, quote(part, safe=""), unquote(part)}:
            if len(form) >= 8 or (len(form) >= 6 and re.search(r"\d", form)):
                _known.add(form)


def learn_from(pairs: Iterable[tuple[str, str]]) -> None:
    """Call `learn` for the values of secret names, and for passwords in the other values.

    Args:
        pairs: (name, value), for example the environment variables.
    """
    for name, value in pairs:
        if is_secret(name):
            learn(value)
        else:
            mask(value)  # calls `learn` for the password of a URL


def mask(text: str) -> str:
    """Return the text with each secret replaced by `***`."""
    for pattern in (_URL_PASSWORD, _URL_TOKEN, _FORMS, _BEARER):
        text = pattern.sub(_hide, text)
    text = _mask_pairs(text)
    for known in sorted(_known, key=len, reverse=True):
        if known in text:
            text = re.sub(rf"(?<!\w){re.escape(known)}(?!\w)", MASK, text)
    return text


def mask_override(word: str) -> str:
    """Return an override `name=value` with secrets in its value masked."""
    name, sign, value = word.partition("=")
    return f"{name}={MASK}" if sign and value and is_secret(name) else mask(word)


def _hide(match: re.Match[str]) -> str:
    if match["value"].strip("*"):
        learn(match["value"])
    return match["start"] + MASK


def _mask_pairs(text: str) -> str:
    """Return the text with the values of secret names masked: `name=value`, `name: value` and `"name": "value"`."""
    parts, done = [], 0
    for pair in _NAME.finditer(text):
        if pair.start() < done or not is_secret(pair["name"]):
            continue
        starts_line = not text[text.rfind("\n", 0, pair.start()) + 1 : pair.start()].strip(" -")
        found = (starts_line and _YAML_VALUE.match(text, pair.end())) or _VALUE.match(text, pair.end())
        if not found or found[0] in ("null", "None", "???") or found[0].startswith("${"):
            continue
        value = found[0].strip("\"'")
        if pair["sign"].endswith("="):  # not after a colon: in a sentence, the word after a colon is no secret
            learn(value)
        quotes = found[0][0] if found[0][0] in "\"'" else ""
        parts += [text[done : found.start()], quotes, MASK, quotes]
        done = found.end()
    return "".join([*parts, text[done:]])


def mask_values(node: Any, secret: bool = False) -> Any:
    """Return nested dicts and lists with all secrets masked.

    Args:
        secret: whether the node is the value of a secret name.
    """
    if isinstance(node, Mapping):
        return {key: mask_values(value, secret or is_secret(str(key))) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [mask_values(value, secret) for value in node]
    if not secret or node is None or isinstance(node, bool) or node == "":
        return mask(node) if isinstance(node, str) else node
    learn(node)
    return MASK


class GuardedStream:
    """A text stream that masks secrets. Other attributes are those of the wrapped stream."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(mask(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def guard_streams() -> None:
    """Mask secrets in everything that this process prints, including tracebacks and messages of libraries.

    The secrets in the environment and on the command line are recorded first (`learn_from`).
    """
    learn_from(os.environ.items())
    learn_from(word.partition("=")[::2] for word in sys.argv)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, GuardedStream):
            setattr(sys, name, GuardedStream(stream))
