"""Secrets: what is one, and masking it where text leaves the program.

A secret is the value of a name such as `password`, `api_key` or `hf_token`, the password in a URL, or a token of a
known form. A value that was recognised once in a structured place (the command line, the environment, a config) is
masked wherever it occurs later, for example in the error message of a library.

Text leaves the program through the two streams (`guard_streams`), the JSON files and the log of a run, and its config.
"""

import os
import re
import sys
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, TextIO
from urllib.parse import quote, unquote

MASK = "***"

# With `-`, `_` and spaces removed. A token or key in the middle of a name (`token_dim`) names something else.
_SECRET_NAME = re.compile(
    r"passw(or)?d|passphrase|secret|credential|apikey|accesskey|accountkey|privatekey|encryptionkey|signingkey"
    r"|authorization|cookie|token(value)?\d*$|pwd\d*$|(^|basic|http|proxy)auth$|signature$|^sig$|^pw$"
    r"|(^|db|user|proxy|smtp)pass$"
)
_NOT_SECRET = re.compile(r"(name|file|path|dir|folder|url|uri|id|type|length|len|size|dim)$", re.IGNORECASE)
# Repetitions are bounded, so that a text of 10 MB takes a time in proportion to its length.
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
    """Return whether the value of a setting or variable with this name is a secret. Dotted keys: the last part."""
    last = re.split(r"[./@]", name)[-1]
    plain = re.sub(r"[^a-z0-9]", "", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", last).lower())
    return bool(_SECRET_NAME.search(plain)) and not _NOT_SECRET.search(last) and last not in ("PWD", "OLDPWD")


def learn(value: object) -> None:
    """Mask this value from now on wherever it occurs as a word, unless it is so short that it may be a common word."""
    text = str(value).strip()
    for part in {text, text.strip("\"'"), *re.split(r"""[\s,\[\]{}"']+""", text)}:
        for form in {part, quote(part, safe=""), unquote(part)}:
            if len(form) >= 8 or (len(form) >= 6 and re.search(r"\d", form)):
                _known.add(form)


def learn_from(pairs: Iterable[tuple[str, str]]) -> None:
    """Learn the secrets among names and values, for example those of the environment."""
    for name, value in pairs:
        if is_secret(name):
            learn(value)
        else:
            mask(value)  # learns the password of a URL


def mask(text: str) -> str:
    """Return the text with each secret in it replaced by `***`."""
    for pattern in (_URL_PASSWORD, _URL_TOKEN, _FORMS, _BEARER):
        text = pattern.sub(_hide, text)
    text = _mask_pairs(text)
    for known in sorted(_known, key=len, reverse=True):
        if known in text:
            text = re.sub(rf"(?<!\w){re.escape(known)}(?!\w)", MASK, text)
    return text


def mask_override(word: str) -> str:
    """Return an override with its value masked if that is a secret."""
    name, sign, value = word.partition("=")
    return f"{name}={MASK}" if sign and value and is_secret(name) else mask(word)


def _hide(match: re.Match[str]) -> str:
    if match["value"].strip("*"):
        learn(match["value"])
    return match["start"] + MASK


def _mask_pairs(text: str) -> str:
    """Mask the values of secret names, as in `name=value`, `name: value` and `"name": "value"`."""
    parts, done = [], 0
    for pair in _NAME.finditer(text):
        if pair.start() < done or not is_secret(pair["name"]):
            continue
        starts_line = not text[text.rfind("\n", 0, pair.start()) + 1 : pair.start()].strip(" -")
        found = (starts_line and _YAML_VALUE.match(text, pair.end())) or _VALUE.match(text, pair.end())
        if not found or found[0] in ("null", "None", "???") or found[0].startswith("${"):
            continue
        value = found[0].strip("\"'")
        if pair["sign"].endswith("="):  # a colon is too common in sentences
            learn(value)
        quotes = found[0][0] if found[0][0] in "\"'" else ""
        parts += [text[done : found.start()], quotes, MASK, quotes]
        done = found.end()
    return "".join([*parts, text[done:]])


def mask_values(node: Any, secret: bool = False) -> Any:
    """Return nested dicts and lists with their secrets masked.

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
    """A text stream that masks secrets; everything else is the stream's own."""

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
    """Mask secrets in all that this process prints, tracebacks and the messages of libraries included.

    The secrets in the environment and on the command line are learnt first.
    """
    learn_from(os.environ.items())
    learn_from(word.partition("=")[::2] for word in sys.argv)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, GuardedStream):
            setattr(sys, name, GuardedStream(stream))
