"""The one exception that stands for a user's mistake."""


class UserError(Exception):
    """A user's mistake, told in one or two plain lines with the remedy; the CLI shows no traceback."""


def install_hint(extra: str) -> str:
    """The command that installs an optional dependency, in the clone. (`ddpm` on PyPI is another project.)"""
    return f"pip install -e '.[{extra}]'"
