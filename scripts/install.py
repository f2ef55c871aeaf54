"""Install this clone, with the extras named as arguments, into the environment of this interpreter.

uv needs a fraction of pip's time. pip installs where uv is missing or fails: pip reads all of the user's settings.
"""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = ["-c", str(ROOT / "constraints.txt")]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
UV_VARIABLES = {  # uv does not read pip's configuration
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "cert": "SSL_CERT_FILE",
}


def uv_environment() -> dict[str, str]:
    """Return the indexes that pip is configured to use, as environment variables of uv."""
    listed = subprocess.run([*PIP, "config", "list"], capture_output=True, text=True, check=True).stdout
    config = dict(line.split("=", 1) for line in listed.splitlines() if "=" in line)
    variables = {"UV_INDEX_STRATEGY": "unsafe-best-match"}  # as pip: the newest version of all indexes
    for key, name in UV_VARIABLES.items():
        for scope in ("global", "install", ":env:"):  # pip's order: a later scope wins
            if value := config.get(f"{scope}.{key}"):
                separator = "," if key == "find-links" else " "
                variables[name] = separator.join(ast.literal_eval(value).split())
    return variables


def find_uv() -> str | None:
    """Return the path of uv: the user's, else one installed from the package index into this environment."""
    own = str(Path(sys.executable).with_name("uv"))
    if found := shutil.which("uv") or shutil.which(own):
        return found
    installed = subprocess.run([*PIP, "install", *CONSTRAINTS, "uv"], stderr=subprocess.DEVNULL)
    return own if installed.returncode == 0 else None


def cache(uv: str) -> list[str]:
    """Return the option that does without uv's cache, where its folder cannot be written, as below a missing HOME."""
    answer = subprocess.run([uv, "cache", "dir"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    folder = Path(answer.stdout.strip())  # without HOME, a relative one
    try:
        if folder.is_absolute():
            folder.mkdir(parents=True, exist_ok=True)
            return [] if os.access(folder, os.W_OK) else ["--no-cache"]
    except OSError:
        pass
    return ["--no-cache"]


def main() -> int:
    extras = ",".join(sys.argv[1:])
    package = ["-e", f"{ROOT}[{extras}]" if extras else str(ROOT)]
    if uv := find_uv():
        command = [uv, "pip", "install", *cache(uv), "--python", sys.executable, *CONSTRAINTS, *package]
        if subprocess.run(command, env=uv_environment() | os.environ).returncode == 0:
            return 0
        print("uv failed; trying pip", file=sys.stderr)
    return subprocess.run([*PIP, "install", "--no-compile", *CONSTRAINTS, *package]).returncode


if __name__ == "__main__":
    sys.exit(main())
