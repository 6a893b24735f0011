#!/usr/bin/env bash
# Installs what the tests of clusters/slurm start, where there is none (Debian 12 and Ubuntu, as root): Slurm's controller, its node daemon
# and its commands; and shellcheck, which reads the files that are made. The daemons are not started: the tests start their own, in a
# folder of their own. Without them those tests are skipped.
set -euo pipefail

missing=()
for pair in slurmctld:slurmctld slurmd:slurmd sbatch:slurm-client shellcheck:shellcheck; do
    PATH=$PATH:/usr/sbin command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
done
[ "${#missing[@]}" -gt 0 ] || { echo "slurm: everything is there"; exit 0; }
command -v apt-get >/dev/null || { echo "slurm: no apt-get here; install ${missing[*]} by hand" >&2; exit 1; }
[ "$(id -u)" = 0 ] || { echo "slurm: run it as root: sudo bash scripts/slurm_here.sh" >&2; exit 1; }
# A package of Debian starts its daemon unless a policy says no.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
    trap 'rm -f "$policy"' EXIT
fi
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
