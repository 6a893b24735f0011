#!/usr/bin/env bash
# Builds the Dockerfile's CPU variant for real, without a Docker engine, and runs the program in it as the
# image's own user. Debian's buildah does it on a base made by debootstrap; both are installed where missing.
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
build build --tag localhost/sparse-generalists "${volumes[@]}" --build-arg BASE_IMAGE=localhost/base \
    --build-arg TORCH_INDEX_URL="$TORCH_INDEX_URL" . >"$work/build.log" 2>&1 ||
    { tail -40 "$work/build.log" >&2; die "the build failed"; }

say "running in it"
container=$(build from localhost/sparse-generalists)
inside() { build run "$container" -- "$@"; }
[ "$(inside id -u)" != 0 ] || die "the image runs as root"
inside python -W ignore - <<'PYTHON'
import pathlib

import deepspeed, megatron.core, torch, wandb, webdataset

pathlib.Path("written").touch()  # the working folder is the user's own
for module in (torch, deepspeed, megatron.core, webdataset, wandb):
    print(f"{module.__name__:14} {module.__version__}")
PYTHON
if [ -e train.py ]; then
    inside python train.py --help >"$work/help" || { cat "$work/help"; die "train.py --help failed in the image"; }
    say "train.py --help works in the image"
fi
say "passed; the image holds $(build run --user root "$container" -- du -shx / | cut -f1)"
