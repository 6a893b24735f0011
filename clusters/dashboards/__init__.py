"""Boards and alerts for what a run tells of itself (run/metrics/names.py).

grafana.json       a board, made by board.py from panels.py: python -m clusters.dashboards.board > clusters/dashboards/grafana.json
rules.yaml         alerts for Prometheus
wandb_report.py    the same curves as a report in wandb
"""
