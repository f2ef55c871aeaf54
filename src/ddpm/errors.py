"""The one exception that stands for a user's mistake."""


class UserError(Exception):
    """A user's mistake, told in one or two plain lines with the remedy; the CLI shows no traceback."""
