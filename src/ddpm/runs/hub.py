"""Models of the Hugging Face Hub: `hf://owner/name`, or `hf://owner/name@revision`."""

import re
from pathlib import Path

from ddpm.errors import UserError, install_hint
from ddpm.runs.exported import FILES, WEIGHTS

PREFIX = "hf://"


def download(spec: str) -> Path:
    """Return the weights of an exported model on the Hub, from the cache of huggingface_hub if they are there.

    Raises:
        UserError: the name is wrong, huggingface_hub is not installed, or there is no such model.
    """
    found = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", spec)
    if found is None:
        raise UserError(f"{spec} must be hf://OWNER/NAME or hf://OWNER/NAME@REVISION.")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise UserError(f"{spec} needs huggingface_hub: {install_hint('hub')}") from None
    try:
        folder = Path(snapshot_download(found[1], revision=found[2], allow_patterns=list(FILES)))
    except Exception as error:  # no network, no such model, no access: many types
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{spec} cannot be downloaded: {type(error).__name__}: {reason}") from error
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"{spec} holds no {WEIGHTS}: it was not written by ddpm export.")
    return folder / WEIGHTS
