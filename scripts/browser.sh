#!/usr/bin/env bash
# Installs a Chromium for the tests that open the report page, where there is none (Debian and Ubuntu, as root). Without one they are skipped.
set -euo pipefail

for name in chromium chromium-browser google-chrome chrome; do
    if command -v "$name" >/dev/null; then
        echo "browser: $(command -v "$name") is there"
        exit 0
    fi
done
command -v apt-get >/dev/null || { echo "browser: no apt-get here; install Chromium or Chrome by hand" >&2; exit 1; }
[ "$(id -u)" = 0 ] || { echo "browser: run it as root: sudo bash scripts/browser.sh" >&2; exit 1; }
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium
