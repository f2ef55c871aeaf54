# Sourced by run and test, which set $root and $extras: makes $root/.venv, or updates it when its requirements changed.
# run and test share the environment; an extra once installed stays. Written for bash 3.2 (macOS).

venv=$root/.venv
stamp=$venv/ddpm-setup # what the environment was made from, then its extras

# Docker images often set it. Then each start spends seconds on compiling all Python files that it imports.
unset PYTHONDONTWRITEBYTECODE

say() { echo "${0##*/}: $*" >&2; }

fail() {
    say "$@"
    exit 1
}

# torch and numpy set the oldest Python; Hydra 1.3 sets the newest (argparse of 3.14 refuses its help text).
find_python() {
    local candidate candidates=(python3 python3.13 python3.12 python3.11)
    if [ -n "${PYTHON:-}" ]; then candidates=("$PYTHON"); fi
    for candidate in "${candidates[@]}"; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    fail "needs Python 3.11, 3.12 or 3.13; ${PYTHON:-python3} is $("${PYTHON:-python3}" --version 2>&1 || true)." \
        "Name another one: PYTHON=/path/to/python3 $0 …"
}

# What the environment depends on: the folder (scripts hold absolute paths), the interpreter, the requirements.
# Without PYTHON the environment keeps its own interpreter, whatever `python3` is today.
wanted() {
    echo "$root"
    "${PYTHON:-$venv/bin/python}" -c 'import sys; print(*sys.version_info[:3])' 2>/dev/null || echo "no interpreter"
    cat "$root/pyproject.toml" "$root/constraints.txt" | cksum
}

installed_extras() { sed -n '4,$p' "$stamp" 2>/dev/null || true; }

is_current() {
    local extra
    [ -x "$venv/bin/python" ] && [ -f "$stamp" ] && [ "$(head -n 3 "$stamp")" = "$(wanted)" ] || return 1
    for extra in $extras; do
        case $extra in
        wandb | mlflow) ;;
        *) if installed_extras | grep -qx dev; then continue; fi ;; # dev contains the others
        esac
        installed_extras | grep -qx "$extra" || return 1
    done
}

install_locked() {
    local python all started=$SECONDS
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
    all=$({ installed_extras && printf '%s\n' $extras; } | sed '/^$/d' | sort -u)
    rm -f "$stamp"
    say "installing ddpm and what it needs (once; with CUDA's libraries about 6 GB on disk)"
    # shellcheck disable=SC2086  # one argument an extra
    "$venv/bin/python" "$root/scripts/install.py" $all 2>&1 |
        { grep --line-buffered -vE '^ [-+~] |^ Downloaded|^Downloading .*\(([0-9.]{3,4}MiB|.*KiB)\)' >&2 || true; } ||
        fail "the installation failed (see above); the same command tries again"
    { wanted && echo "$all"; } >"$stamp.new"
    mv "$stamp.new" "$stamp"
    say "installed in $((SECONDS - started)) s"
}

if ! is_current; then
    (install_locked) 9>"$root/.venv.lock"
fi
