#!/usr/bin/env bash
# Makes the virtual environment: torch, then everything else, then DeepSpeed built against that torch.
# Quick when nothing changed; killed half-way, the same command starts over.
#
#   VENV             where                                       .venv
#   BASE_PYTHON      interpreter to make it from                 the first 3.11+ found
#   EXTRAS           optional dependencies to add                "dev docs"
#   TORCH_INDEX_URL  index of torch's wheels, for the CPU ones:  pip's own
#                    https://download.pytorch.org/whl/cpu
#
# A torch of the pinned version that the environment already has, CPU or CUDA, is kept.
set -euo pipefail
cd "$(dirname "$0")/.."

VENV=${VENV:-.venv}
EXTRAS=${EXTRAS-dev docs}
python=$VENV/bin/python
stamp=$VENV/.ready                # written last: holds the key of what was installed
unfinished=$VENV.unfinished       # beside it while at work: holds our process id

say() { printf 'setup: %s\n' "$*"; }
die() { say "$*" >&2; exit 1; }

key=$(cat pyproject.toml constraints.txt scripts/setup.sh | cksum)" $EXTRAS"
if [ -x "$python" ] && [ ! -e "$unfinished" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$key" ]; then
    exit 0
fi

# --- What must be there first ---------------------------------------------------------------------------------

recent() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }
if [ -z "${BASE_PYTHON:-}" ]; then
    for BASE_PYTHON in python3 python3.13 python3.12 python3.11; do
        recent "$BASE_PYTHON" && break
    done
fi
recent "$BASE_PYTHON" || die "needs Python 3.11 or newer, found $("$BASE_PYTHON" --version 2>&1 || true);" \
    "name another with BASE_PYTHON=/path/to/python"
command -v "${CXX:-c++}" >/dev/null || die "needs a C++ compiler to build DeepSpeed's operations (Debian: apt-get install g++)"
headers=$("$BASE_PYTHON" -c 'import sysconfig; print(sysconfig.get_path("include"))')
[ -e "$headers/Python.h" ] || die "needs Python's headers, and $headers/Python.h is missing (Debian: apt-get install python3-dev)"

if [ -e "$unfinished" ]; then
    other=$(cat "$unfinished")
    kill -0 "$other" 2>/dev/null && die "another set-up (process $other) is at work on $VENV: wait for it," \
        "or remove $unfinished if that process is something else"
    # pip may have been killed between a package's files and its record, which it would take for installed.
    say "an earlier set-up of $VENV was killed; starting over"
    rm -rf "$VENV"
fi

mkdir -p "$(dirname "$VENV")"
echo $$ >"$unfinished"
trap 'exit 130' INT TERM          # leaves the mark; a pip that failed by itself leaves whole packages and no mark
failed() { rm -f "$unfinished"; die "$*"; }
pip_install() { "$python" -m pip install -qq --disable-pip-version-check --no-input -c constraints.txt "$@"; }

# --- The environment ------------------------------------------------------------------------------------------

if ! "$python" -m pip --version >/dev/null 2>&1; then
    say "making $VENV with $("$BASE_PYTHON" --version)"
    "$BASE_PYTHON" -m venv "$VENV" || failed "could not make $VENV (Debian: apt-get install python3-venv)"
fi
recent "$python" || failed "$VENV holds $("$python" --version), and 3.11 is needed: remove it first"

# requirements WHAT: lines for pip, from pyproject.toml, where each pin has its only place.
requirements() {
    "$python" - "$1" "$EXTRAS" <<'PYTHON'
import sys, tomllib

what, extras = sys.argv[1:]
with open("pyproject.toml", "rb") as file:
    tables = tomllib.load(file)
project = tables["project"]
pins = {line.split("==")[0]: line for line in project["dependencies"]}
pins["vocabulary"] = tables["tool"]["sparse-generalists"]["vocabulary"]
pins["oracles"] = "\n".join(tables["tool"]["sparse-generalists"]["oracles"])
if what == "rest":
    for extra in extras.split():
        pins |= {line: line for line in project["optional-dependencies"][extra]}
    # What DeepSpeed's build asks for and does not declare: it is built without isolation, to see our torch.
    pins |= {name: name for name in ("setuptools", "wheel", "packaging", "py-cpuinfo")}
    print(*(line for name, line in pins.items() if name not in ("deepspeed", "vocabulary", "oracles")), sep="\n")
else:
    print(pins[what])
PYTHON
}

torch=$(requirements torch)
found=$("$python" -c 'import torch; print(torch.__version__)' 2>/dev/null || true)
if [ "torch==${found%%+*}" = "$torch" ]; then
    say "keeping torch $found"
else
    say "installing $torch ${TORCH_INDEX_URL:+from $TORCH_INDEX_URL }(CPU about 0.2 GB, CUDA about 3 GB)"
    # Alone, since a torch index holds other versions of its dependencies than the pinned ones.
    pip_install --no-deps ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} "$torch" || failed "could not install $torch"
fi

say "installing the other packages (${SECONDS} s so far)"
requirements rest >"$VENV/requirements.txt"
pip_install -r "$VENV/requirements.txt" || failed "could not install the packages of $VENV/requirements.txt"
pip_install --no-deps "$(requirements vocabulary)" || failed "could not install $(requirements vocabulary)"
case " $EXTRAS " in *" dev "*)
    # shellcheck disable=SC2046
    pip_install --no-deps $(requirements oracles) || say "could not install $(requirements oracles | xargs): tests that compare with them skip" ;;
esac

# --- DeepSpeed ------------------------------------------------------------------------------------------------

# Without a GPU, DeepSpeed compiles this operation when ranks first meet: minutes of silence, and a lock left
# behind for ever when killed. So it is compiled here. Any other DS_BUILD_* is passed on as well.
if [ "$(uname -s)" = Linux ] && [ "${DS_ACCELERATOR:-cpu}" = cpu ] &&
    ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    export DS_BUILD_SHM_COMM=${DS_BUILD_SHM_COMM:-1}
fi

# Does DeepSpeed hold every operation asked for, built for this torch and loadable? pip keeps the wheels it
# builds, whatever they were built with, so one from an earlier time may lack them.
has_operations() {
    "$python" - <<'PYTHON'
import importlib.util, os, pathlib, runpy, sys, sysconfig

import torch

root = pathlib.Path(sysconfig.get_path("platlib"), "deepspeed")
built = runpy.run_path(str(root / "git_version_info_installed.py"))
operations = [name for name, included in built["installed_ops"].items() if included]
wanted = [name.removeprefix("DS_BUILD_").lower() for name, value in os.environ.items()
          if name.startswith("DS_BUILD_") and value == "1"]
missing = [want for want in wanted if not any(name.endswith(want) for name in operations)]
if missing or (operations and not torch.__version__.startswith(built["torch_info"]["version"] + ".")):
    sys.exit(1)
for library in root.glob("ops/*/*_op.*.so"):
    spec = importlib.util.spec_from_file_location(library.name.split(".")[0], library)
    importlib.util.module_from_spec(spec)  # loads the library; raises ImportError where it does not fit
PYTHON
}

deepspeed=$(requirements deepspeed)
say "building $deepspeed, about two minutes the first time (${SECONDS} s so far)"
pip_install --no-build-isolation "$deepspeed" || failed "could not build $deepspeed"
if ! has_operations 2>/dev/null; then
    say "pip's stored DeepSpeed was built without the operations needed here; building it again (${SECONDS} s so far)"
    pip_install --no-build-isolation --no-cache-dir --no-deps --force-reinstall "$deepspeed" || failed "could not build $deepspeed"
    has_operations || failed "$deepspeed was built, but without the operations asked for"
fi

printf '%s' "$key" >"$stamp"
rm -f "$unfinished"
say "$VENV is ready (${SECONDS} s)"
