"""The arithmetic that a device can do at most, for model FLOPs utilisation.

Figures are those of the vendors' data sheets for dense matrix products without sparsity, accumulated in fp32, in TFLOP/s. Where a
sheet tells figures with sparsity alone, they are halved. A die of AMD's MI250X is a device of its own.
"""

from __future__ import annotations

import re
import time
from typing import Literal

import torch

Peak = float | Literal["known", "measured"]
TERA = 1e12
# Device names as the driver tells them -> (bf16 or fp16, TF32, fp32); 0 where a device has none. The first that fits counts.
# $: "4090 D", "4090 Laptop GPU" and "3090 Ti" are others.
KNOWN: tuple[tuple[str, tuple[float, float, float]], ...] = (
    (r"GB200", (2500.0, 1250.0, 80.0)),
    (r"B200", (2250.0, 1125.0, 75.0)),
    (r"GH200|H200(?! NVL)|H100 \d+GB HBM3|H100 SXM", (989.4, 494.7, 66.9)),
    (r"H200 NVL|H100 NVL", (835.5, 417.7, 60.0)),
    (r"H100 PCIe", (756.0, 378.0, 51.0)),
    (r"H20", (148.0, 74.0, 44.0)),
    (r"A100", (312.0, 156.0, 19.5)),
    (r"A30", (165.0, 82.0, 10.3)),
    (r"A40", (149.7, 74.8, 37.4)),
    (r"A10", (125.0, 62.5, 31.2)),
    (r"RTX A6000", (154.8, 77.4, 38.7)),
    (r"L40S", (362.1, 183.0, 91.6)),
    (r"L40", (181.1, 90.5, 90.5)),
    (r"L4", (121.0, 60.0, 30.3)),
    (r"RTX 4090$", (165.2, 82.6, 82.6)),
    (r"RTX 3090$", (71.0, 35.6, 35.6)),
    (r"T4", (65.0, 0.0, 8.1)),
    (r"V100S", (130.0, 0.0, 16.4)),
    (r"V100-SXM\d", (125.0, 0.0, 15.7)),
    (r"V100", (112.0, 0.0, 14.0)),
    (r"MI325X|MI300X", (1307.4, 653.7, 163.4)),
    (r"MI250X", (191.5, 0.0, 47.9)),
)
NO_BF16 = r"T4|V100"
SIDES = {"cpu": 512, "cuda": 8192}
"""Rows of the square matrices whose product is timed."""
MEASURED_S = 0.5


def peak_of(wanted: Peak, device: str, dtype: torch.dtype) -> float:
    """FLOP/s of one rank; 0 where it is not known."""
    if wanted == "measured":
        return measured_peak(device, dtype)
    if wanted == "known":
        return TERA * known_peak(name_of(device), dtype, allows_tf32())
    return TERA * float(wanted)


def known_peak(name: str, dtype: torch.dtype, tf32: bool) -> float:
    """TFLOP/s; 0 if there is none. tf32: whether fp32 products may be made of shorter numbers."""
    if "MIG" in name:  # a part of a device
        return 0.0
    for pattern, (half, short, single) in KNOWN:
        if re.search(rf"\b({pattern})\b", name):
            if dtype == torch.float32:
                return short if tf32 and short else single
            is_missing = dtype == torch.bfloat16 and re.search(NO_BF16, name)
            return 0.0 if is_missing or dtype not in (torch.bfloat16, torch.float16) else half
    return 0.0


def measured_peak(device: str, dtype: torch.dtype) -> float:
    """FLOP/s of the fastest of some products of square matrices, half a second of them, as this rank computes beside the others."""
    side = SIDES[torch.device(device).type]
    x, y = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(x)
    fastest, begin = float("inf"), time.perf_counter()
    while time.perf_counter() - begin < MEASURED_S or fastest == float("inf"):
        start = time.perf_counter()
        torch.mm(x, y, out=out)
        if out.is_cuda:
            torch.cuda.synchronize(out.device)
        fastest = min(fastest, time.perf_counter() - start)
    return 2 * side**3 / fastest


def name_of(device: str) -> str:
    return "CPU" if device == "cpu" else torch.cuda.get_device_name(device)


def allows_tf32() -> bool:
    return torch.cuda.is_available() and torch.backends.cuda.matmul.fp32_precision == "tf32"


def note_of(wanted: Peak, device: str, dtype: torch.dtype, peak: float) -> list[str]:
    """A line about the peak at the start of a run, unless it is the usual one. peak: FLOP/s of a rank."""
    kind = str(dtype).removeprefix("torch.")
    if not peak:
        return [f"MFU n/a: no known peak for {name_of(device)} in {kind}; set tracking.peak=measured"]
    return [f"MFU of a measured peak of {peak / TERA:.3g} TFLOP/s per rank in {kind}"] if wanted == "measured" else []
