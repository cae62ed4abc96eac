# Sourced by tools/demo and tools/test: finds a Python, makes a virtual environment, installs this checkout into it.
# Wants the variable ROOT: the checkout.

PADDLE_VERSION=3.3.1
PADDLE_OLD_VERSION=2.6.2
unset PYTHONPATH PYTHONHOME
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"  # the models are small: threads cost more than they bring

say() { printf '\n== %s\n' "$*"; }

die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# find_python VERSION...: prints the first interpreter that starts, has one of the versions (in that order of
# preference) and can make virtual environments. PYTHON, where set, is the only candidate.
find_python() {
    local version candidate candidates
    for version in "$@"; do
        candidates=("python$version" python3 python "${PYENV_ROOT:-${HOME:-}/.pyenv}/versions/$version".*/bin/python)
        [ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
        for candidate in "${candidates[@]}"; do
            if "$candidate" -c "import sys, venv, ensurepip; sys.exit('%d.%d' % sys.version_info[:2] != '$version')" \
                >/dev/null 2>&1; then
                "$candidate" -c 'import sys; print(sys.executable)'
                return 0
            fi
        done
    done
    return 1
}

# install_into VENV PYTHON REQUIREMENT...: makes VENV with PYTHON when it is absent, and installs the requirements when
# they or the packaging files changed since the last time.
install_into() {
    local venv=$1 python=$2 stamp
    shift 2
    stamp=$(cat "$ROOT/setup.cfg" "$ROOT/pyproject.toml" "$ROOT/tools/environment.sh" | cksum)" $ROOT $*"
    if [ "$(cat "$venv/qpass-installed" 2>/dev/null)" = "$stamp" ] && "$venv/bin/python" -c '' 2>/dev/null; then
        return 0
    fi
    [ -x "$venv/bin/python" ] && "$venv/bin/python" -c '' 2>/dev/null || {
        say "making the virtual environment ${venv#"$ROOT"/} with $("$python" -V)"
        "$python" -m venv --clear "$venv" || die "$python cannot make a virtual environment"
    }
    say "installing into ${venv#"$ROOT"/}: $* (a minute or two the first time)"
    (cd "$ROOT" && "$venv/bin/python" -m pip install --quiet "$@") ||
        die "the installation failed; pip says why above. Delete ${venv#"$ROOT"/} to start afresh."
    printf '%s\n' "$stamp" >"$venv/qpass-installed"
}

# use_active MODULE...: sets VENV to the active virtual environment when it runs this checkout and has the modules.
use_active() {
    [ -n "${VIRTUAL_ENV:-}" ] && [ -x "$VIRTUAL_ENV/bin/python" ] || return 1
    (cd / && "$VIRTUAL_ENV/bin/python" - "$ROOT" "$@" >/dev/null 2>&1) <<'PYTHON' || return 1
import importlib.util
import pathlib
import sys

root, *modules = sys.argv[1:]
found = importlib.util.find_spec("qpass")
here = found is not None and pathlib.Path(found.origin).resolve().parents[1] == pathlib.Path(root).resolve()
sys.exit(not (here and all(importlib.util.find_spec(m) for m in ("paddle", *modules))))
PYTHON
    VENV=$VIRTUAL_ENV
    say "using the active virtual environment $VENV"
}
