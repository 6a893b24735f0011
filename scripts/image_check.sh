#!/usr/bin/env bash
# Builds the Dockerfile's CPU variant for real, without a Docker engine, and runs the program in it as the
# image's own user. Debian's buildah does it on a base made by debootstrap; both are installed where missing.
# Then a small training on two ranks runs in it as a cluster would run it: the image's entry as process 1, a read-only root file
# system, writable /tmp and /runs alone. SIGTERM to process 1 must save and end with 85, and the same command resume.
#
#   SUITE            Debian release of the base                  bookworm
#   DEBIAN_MIRROR    where it comes from                         this host's own mirror of it
#   TORCH_INDEX_URL  index of torch's CPU wheel                  PyTorch's, unless pip finds one here by itself
#   TMPDIR           room for about 10 GB                        /tmp
#
# This host's settings of apt, pip and proxies hold in the build too, so it works behind a mirror or with local
# wheel folders. They are mounted for the build alone and name nothing in the image.
set -euo pipefail
cd "$(dirname "$0")/.."

SUITE=${SUITE:-bookworm}
export BUILDAH_ISOLATION=chroot

say() { printf 'image-check: %s (%s s)\n' "$*" "$SECONDS"; }
die() { printf 'image-check: %s\n' "$*" >&2; exit 1; }

[ "$(id -u)" = 0 ] || die "needs root, for debootstrap and chroot: sudo make image-check"
if ! command -v buildah >/dev/null || ! command -v debootstrap >/dev/null; then
    command -v apt-get >/dev/null || die "needs buildah and debootstrap, and installs them itself on Debian alone"
    say "installing buildah and debootstrap"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        buildah debootstrap debian-archive-keyring golang-github-containers-common >/dev/null
fi

work=$(mktemp -d "${TMPDIR:-/tmp}/image-check.XXXXXX")
export TMPDIR=$work
clean_up() {
    # Folders of this host are mounted below $work while building; removing it then would empty them.
    if grep -q " $work/" /proc/self/mountinfo; then
        die "something is still mounted below $work; unmount it and remove that folder"
    fi
    rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

# vfs copies whole layers and mounts nothing, so it also works inside a container.
build() { buildah --root "$work/storage" --runroot "$work/runroot" --storage-driver vfs "$@"; }

# --- This host's ways out -------------------------------------------------------------------------------------

# $work/pip.conf: pip's settings here; $work/volumes: the local folders and certificates that they name, one
# "here:there" a line, each seen in the build below /mnt.
python3 - "$work" <<'PYTHON'
import ast, pathlib, subprocess, sys

WANTED = ("index-url", "extra-index-url", "find-links", "no-index", "trusted-host", "proxy", "cert", "client-cert",
          "timeout", "default-timeout", "retries")
work = pathlib.Path(sys.argv[1])
listing = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True).stdout
settings, volumes = {}, {}


def inside(here: pathlib.Path) -> str:
    return volumes.setdefault(str(here), f"/mnt/host-{len(volumes)}")


def translate(word: str) -> str:
    if word.startswith("file://"):
        folder = pathlib.Path(word.removeprefix("file://"))
        return f"file://{inside(folder.parent)}/{folder.name}"  # an index refers to the files beside it
    return inside(pathlib.Path(word)) if word.startswith("/") and pathlib.Path(word).exists() else word


# The environment comes first in pip's list, and wins; sorted by that, it is read last.
for line in sorted(listing.splitlines(), key=lambda line: line.startswith(":env:")):
    key, value = line.split("=", 1)
    name = key.rpartition(".")[2]
    if name in WANTED:
        settings[name] = " ".join(translate(word) for word in ast.literal_eval(value).split())
lines = ["[global]", *(f"{name} = {value}" for name, value in settings.items())]
(work / "pip.conf").write_text("\n".join(lines) + "\n")
(work / "volumes").write_text("".join(f"{here}:{there}\n" for here, there in volumes.items()))
PYTHON
volumes=(--volume "$work/pip.conf:/etc/pip.conf:ro")
while read -r volume; do volumes+=(--volume "$volume:ro"); done <"$work/volumes"

if [ -z "${TORCH_INDEX_URL+set}" ]; then
    torch=$(python3 -c 'import re; print(re.search(r"\"(torch==.+?)\"", open("pyproject.toml").read())[1])')
    # pip takes the CUDA wheel on Linux; does this host's pip see a CPU wheel that comes before it?
    if python3 -m pip install --quiet --dry-run --report - --no-deps --ignore-installed --target "$work/none" \
        --python-version 3.11 --only-binary :all: "$torch" 2>/dev/null | grep -q '+cpu'; then
        TORCH_INDEX_URL=
    else
        TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
    fi
fi

# --- Base, image, run -----------------------------------------------------------------------------------------

if [ -z "${DEBIAN_MIRROR:-}" ]; then
    DEBIAN_MIRROR=$(apt-get indextargets --format '$(REPO_URI)' "Codename: $SUITE" 2>/dev/null | sed -n 1p)
    DEBIAN_MIRROR=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
fi
say "making a base of $SUITE from $DEBIAN_MIRROR"
debootstrap --variant=minbase --include=ca-certificates "$SUITE" "$work/base" "$DEBIAN_MIRROR" >"$work/debootstrap.log" ||
    { tail -20 "$work/debootstrap.log" >&2; die "debootstrap failed"; }
# How this host reaches its mirrors: proxies, retries, checks of dates. Programs named there are not in the base.
apt-config dump | grep -E '^Acquire::(http|https|Check|Retries)' | grep -v 'Auto-Detect' >"$work/base/etc/apt/apt.conf.d/99host" || true
container=$(build from scratch)
build add --quiet "$container" "$work/base" / >/dev/null
build commit --quiet "$container" localhost/base >/dev/null
build rm "$container" >/dev/null
rm -rf "$work/base"

say "building the image"
epoch=$(sed -n 's/^ARG SOURCE_DATE_EPOCH=//p' Dockerfile)
# The docker format, as OCI's has no health check.
build build --format docker --timestamp "$epoch" --tag localhost/sparse-generalists "${volumes[@]}" \
    --build-arg BUILD_IMAGE=localhost/base --build-arg RUNTIME_IMAGE=localhost/base \
    --build-arg TORCH_INDEX_URL="$TORCH_INDEX_URL" --build-arg REVISION="$(git rev-parse HEAD 2>/dev/null || echo unknown)" \
    . >"$work/build.log" 2>&1 ||
    { tail -40 "$work/build.log" >&2; die "the build failed"; }

say "looking at it"
container=$(build from localhost/sparse-generalists)
build inspect --type container "$container" >"$work/inspect.json"
# $work/entry: what an engine would run, one word a line: its environment, then `--`, then its entry point.
python3 - "$work" <<'PYTHON'
import json, pathlib, sys

work = pathlib.Path(sys.argv[1])
config = json.loads((work / "inspect.json").read_text())["Docker"]["config"]
labels = {name.rpartition(".")[2]: value for name, value in (config.get("Labels") or {}).items() if "opencontainers" in name}
wanted = {"title", "description", "licenses", "version", "revision", "documentation"}
assert wanted <= labels.keys() and all(labels.values()), f"labels: {labels}"
assert config["User"] == "trainer", config["User"]
assert "--check" in config["Healthcheck"]["Test"], config.get("Healthcheck")
assert config["Entrypoint"] == ["tini", "--"], config["Entrypoint"]
(work / "entry").write_text("\n".join([*config["Env"], "--", *config["Entrypoint"]]) + "\n")
print(f"labels: {', '.join(f'{name}={value}' for name, value in sorted(labels.items()))}")
PYTHON

say "running in it"
inside() { build run "$container" -- "$@"; }
[ "$(inside id -u)" != 0 ] || die "the image runs as root"
inside sh -c '! command -v cc && ! command -v g++ && ! command -v nvcc' || die "the image holds a compiler"
inside python -W ignore - <<'PYTHON'
import json, pathlib, sysconfig
from importlib.metadata import distributions

import deepspeed, megatron.core, torch, wandb, webdataset

pathlib.Path("written").touch()  # the working folder is the user's own
for module in (torch, deepspeed, megatron.core, webdataset, wandb):
    print(f"{module.__name__:14} {module.__version__}")
bill = json.loads(pathlib.Path("/usr/share/sbom/python.cdx.json").read_text())
listed = {(c["name"].lower().replace("_", "-"), c["version"]) for c in bill["components"]}
there = {(d.name.lower().replace("_", "-"), d.version) for d in distributions(path=[sysconfig.get_path("purelib")])}
assert bill["bomFormat"] == "CycloneDX" and there <= listed, f"not in the bill of materials: {sorted(there - listed)}"
packages = pathlib.Path("/usr/share/sbom/debian.tsv").read_text().splitlines()
assert any(line.startswith("tini\t") for line in packages)
print(f"bill of materials: {len(listed)} Python packages, {len(packages)} of the distribution")
PYTHON
inside python train.py --help >"$work/help" || { cat "$work/help"; die "train.py --help failed in the image"; }
say "train.py --help works in the image"

# --- A training as a cluster runs it ----------------------------------------------------------------------------

# cluster COMMAND...: the image's entry with that command, as process 1 of its own, on a read-only root.
root=$(build mount "$container")
install -d -o 10001 -g 10001 "$work/runs"
mapfile -t entry <"$work/entry"
cluster() {
    unshare --mount --pid --fork --kill-child=KILL bash -euc '
        root=$1 runs=$2; shift 2
        mount --bind "$root" "$root"
        mount -o remount,bind,ro "$root"
        mount -t proc proc "$root/proc"
        mount --rbind /dev "$root/dev"
        mount -t tmpfs -o size=64m none "$root/dev/shm"
        mount -t tmpfs -o mode=1777 none "$root/tmp"
        mount --bind "$runs" "$root/runs"
        before=(); while [ "$1" != -- ]; do before+=("$1"); shift; done; shift
        exec chroot --userspec=10001:10001 "$root" env -i -C /runs HOME=/tmp PYTHONPATH=/app OMP_NUM_THREADS=1 \
            GLOO_SOCKET_IFNAME=lo PET_NPROC_PER_NODE=2 "${before[@]}" "$@"
    ' bash "$root" "$work/runs" "${entry[@]}" "$@"
}
training=(python -m clusters.kubernetes.ranks /app/train.py --config /app/configs/demo.yaml runs=/runs name=checked
    data.workers=1 log_every=1 save_every=1000 optimizer.warmup_steps=1 model.width=32 model.depth=2 model.heads=2 model.ffn=64
    "tracking.wandb=disabled")

if cluster sh -c 'touch /app/x || touch /opt/x' 2>/dev/null; then die "the root file system can be written"; fi
cluster python -m data.synthetic --out data_demo --shapes 96 --clips 48 --sentences 96 --pairs 96 --evaluation 16 >/dev/null
cluster "${training[@]}" steps=5000 >"$work/training.log" 2>&1 &
outside=$!
for _ in $(seq 300); do
    grep -q '^step 3/' "$work/training.log" && break
    kill -0 "$outside" 2>/dev/null || { cat "$work/training.log" >&2; die "the training ended"; }
    sleep 1
done
grep -q '^step 3/' "$work/training.log" || { cat "$work/training.log" >&2; die "no step within 300 s"; }
began=$(date +%s%N)
first=$outside  # below it are unshare and then the image's process 1
while [ "$(cat "/proc/$first/comm")" != tini ]; do first=$(tr -d ' ' <"/proc/$first/task/$first/children"); done
kill -TERM "$first"
code=0; wait "$outside" || code=$?
took=$((($(date +%s%N) - began) / 1000000))
[ "$code" = 85 ] || { cat "$work/training.log" >&2; die "SIGTERM to process 1 ended with $code, not 85"; }
saved=$(sed -n 's/.*saved step_0*\([0-9]*\).*/\1/p' "$work/training.log" | tail -1)
[ -n "$saved" ] || { cat "$work/training.log" >&2; die "nothing was saved"; }
[ "$took" -lt 60000 ] || die "SIGTERM took $took ms"
say "SIGTERM to process 1: step $saved saved, exit code 85 after $took ms"
cluster "${training[@]}" "steps=$((saved + 2))" >"$work/training.log" 2>&1 || { cat "$work/training.log" >&2; die "no resume"; }
grep -q "finished at step $((saved + 2))" "$work/training.log" || { cat "$work/training.log" >&2; die "no resume"; }
say "the same command resumed from step $saved"
build umount "$container" >/dev/null

say "passed; the image holds $(build run --user root "$container" -- du -shx / | cut -f1)"
