"""Clusters: what starts, checks, restarts, watches and copies runs on many machines. `python -m clusters --help`.

    slurm        a file for sbatch, made for a run
    kubernetes   manifests of a run; base/ and overlays/ for kustomize
    doctor       checks of machines before a run
    supervise    starts ranks, and starts them again after losses with as many as fit
    store        run folders to object stores and back
    sizes        cores and memory that a rank asks for, from its plan
    dashboards   a board for Grafana, rules for Prometheus, a template for wandb

Nothing else imports this package; a training knows nothing of it.
"""
