"""The one exception that stands for a user's mistake, and parts of its messages."""

import difflib
from collections.abc import Collection


class UserError(Exception):
    """A user's mistake, told in one or two plain lines with the remedy; the CLI shows no traceback."""


def install_hint(extra: str) -> str:
    """The command that installs an optional dependency, in the clone. (`ddpm` on PyPI is another project.)"""
    return f"pip install -e '.[{extra}]'"


def did_you_mean(name: str, known: Collection[str]) -> str:
    """Return the end of a message that names similar known names, else those with the same last part; or empty."""
    near = difflib.get_close_matches(name, known, n=2, cutoff=0.7) or [
        other for other in sorted(known, key=len) if other.rpartition(".")[2] == name.rpartition(".")[2]
    ]
    return f" Did you mean {' or '.join(near[:2])}?" if near else ""
