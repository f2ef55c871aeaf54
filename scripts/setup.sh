# Sourced by run and test, which set $root: makes $root/.venv, or brings it up to date when something that decides
# its content has changed. One environment, with the tools of development, serves both. Written for bash 3.2 (macOS).

venv=$root/.venv
stamp=$venv/ddpm-setup

say() { echo "${0##*/}: $*" >&2; }

fail() {
    say "$@"
    exit 1
}

# Newer interpreters often stand beside a `python3` that is the system's old one.
find_python() {
    local candidate candidates=(python3 python3.14 python3.13 python3.12 python3.11)
    if [ -n "${PYTHON:-}" ]; then candidates=("$PYTHON"); fi
    for candidate in "${candidates[@]}"; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    fail "needs Python 3.11 or newer, and ${PYTHON:-python3} is $("${PYTHON:-python3}" --version 2>&1 || true);" \
        "install one or name one: PYTHON=/path/to/python3 $0 …"
}

# What the environment depends on: the folder (scripts hold absolute paths), the interpreter, the requirements.
# Without PYTHON the environment keeps its own interpreter, whatever `python3` is today.
wanted() {
    echo "$root"
    "${PYTHON:-$venv/bin/python}" -c 'import sys; print(*sys.version_info[:3])' 2>/dev/null || echo "no interpreter"
    cat "$root/pyproject.toml" "$root/constraints.txt" | cksum
}

is_current() { [ -x "$venv/bin/python" ] && [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(wanted)" ]; }

install_locked() {
    local python started=$SECONDS
    python=$(find_python)
    # The lock is on file descriptor 9 and ends with this subshell, even a killed one. macOS has no flock command.
    if ! "$python" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)' 2>/dev/null; then
        say "waiting for another set-up of $venv"
        "$python" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)'
        if is_current; then return; fi
    fi

    if [ "$(head -n 2 "$stamp" 2>/dev/null)" != "$(wanted | head -n 2)" ]; then
        say "making $venv with $("$python" --version)"
        "$python" -c 'import ensurepip, venv' 2>/dev/null ||
            fail "$python has no venv module (Debian and Ubuntu: apt install python3-venv)"
        "$python" -m venv --clear "$venv"
    fi
    rm -f "$stamp"
    say "installing ddpm and what it needs (once; with CUDA's libraries about 6 GB on disk)"
    # Of pip's many lines, show the large downloads and when it starts to install.
    PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1 "$venv/bin/python" -m pip install --progress-bar off \
        -c "$root/constraints.txt" -e "${root}[dev]" |
        { grep --line-buffered -E '\([0-9.]{4,} MB\)|\([0-9.]+ GB\)|^Installing' | cut -c 1-110 >&2 || true; } ||
        fail "the installation failed (see above); the same command tries again"
    wanted >"$stamp.new"
    mv "$stamp.new" "$stamp"
    say "installed in $((SECONDS - started)) s"
}

if ! is_current; then
    (install_locked) 9>"$root/.venv.lock"
fi
