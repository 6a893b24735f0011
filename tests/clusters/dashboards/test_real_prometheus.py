"""A real Prometheus scrapes what the sink writes, takes the rules, and answers every panel."""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from clusters.ranks import free_port
from run.sinks.prometheus import Prometheus
from tests.clusters.dashboards.made import whole_record
from tests.clusters.dashboards.test_board import TARGETS
from tests.clusters.dashboards.test_rules import ALERTS, FILE
from tests.run.sinks.made import loaded

SCRAPE_S = 1


class Files(http.server.SimpleHTTPRequestHandler):
    """In node exporter's place: its textfile collector gives out such files as they are."""

    def guess_type(self, path: object) -> str:
        return "text/plain; version=0.0.4"

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def exporter(tmp_path) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Files, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def prometheus(tmp_path, exporter) -> Iterator[str]:
    program = shutil.which("prometheus")
    if not program:
        pytest.skip("prometheus is not installed (Debian: apt-get install prometheus)")
    shutil.copy(FILE, tmp_path)
    settings: dict[str, Any] = {
        "global": {"scrape_interval": f"{SCRAPE_S}s", "evaluation_interval": "1s"},
        "rule_files": [FILE.name],
        "scrape_configs": [
            {
                "job_name": "node",
                "honor_labels": True,
                "metrics_path": "/run.prom",
                "static_configs": [{"targets": [exporter]}],
            }
        ],
    }
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(settings))
    address = f"127.0.0.1:{free_port()}"
    words = [program, "--config.file=prometheus.yml", "--storage.tsdb.path=data", f"--web.listen-address={address}"]
    process = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    yield f"http://{address}/api/v1"
    process.terminate()
    process.wait(timeout=30)


def asked(api: str, expression: str) -> list[dict[str, Any]]:
    query = urllib.parse.urlencode({"query": expression})
    with urllib.request.urlopen(f"{api}/query?{query}", timeout=10) as reply:
        return json.load(reply)["data"]["result"]


def until(condition) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            if condition():
                return
        except OSError:
            pass
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.slow
def test_every_panel_has_an_answer(config, tmp_path: Path, prometheus):
    run = loaded(config, f"tracking.prometheus={tmp_path}/run.prom", "tracking.project=lab")
    sink = Prometheus(run, 0)
    samples = f'sparse_generalists_samples_total{{job="lab", run="{run.name}"}}'
    for number in range(1, 4):  # rates need several
        sink.write(whole_record(run) | {"time/exchange": 0.5})
        until(lambda number=number: [found["value"][1] for found in asked(prometheus, samples)] == [str(number)])
    for title, target in TARGETS:
        expression = target["expr"].replace("$job", "lab").replace("$run", ".+").replace("$__rate_interval", "1m")
        assert asked(prometheus, expression), (title, expression)
    with urllib.request.urlopen(f"{prometheus}/rules", timeout=10) as reply:
        rules = [rule for group in json.load(reply)["data"]["groups"] for rule in group["rules"]]
    assert {rule["name"] for rule in rules if rule["type"] == "alerting"} == ALERTS.keys()
    assert all(rule["health"] in ("ok", "unknown") for rule in rules)
    until(lambda: asked(prometheus, 'ALERTS{alertname="RoutingAlarm", alertstate="firing", job="lab"}'))
