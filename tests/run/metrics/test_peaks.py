"""Known peaks by the names that drivers tell, and one that is measured."""

from __future__ import annotations

import pytest
import torch

from parallel.precision import allow_tf32
from run.metrics import peaks
from run.metrics.peaks import known_peak, measured_peak, note_of, peak_of

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


@pytest.mark.parametrize(
    ("name", "dtype", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", BF16, 989.4),
        ("NVIDIA H100 PCIe", BF16, 756),
        ("NVIDIA H100 NVL", FP16, 835.5),
        ("NVIDIA H200", BF16, 989.4),
        ("NVIDIA H200 NVL", BF16, 835.5),
        ("NVIDIA H20", BF16, 148),
        ("NVIDIA GH200 480GB", BF16, 989.4),
        ("NVIDIA B200", BF16, 2250),
        ("NVIDIA GB200", BF16, 2500),
        ("NVIDIA A100-SXM4-80GB", BF16, 312),
        ("NVIDIA A100 80GB PCIe", FP32, 19.5),
        ("NVIDIA A10", BF16, 125),
        ("NVIDIA L4", BF16, 121),
        ("NVIDIA L40", BF16, 181.1),
        ("NVIDIA L40S", BF16, 362.1),
        ("Tesla V100-SXM2-16GB", FP16, 125),
        ("Tesla V100-PCIE-32GB", FP16, 112),
        ("Tesla V100-SXM2-16GB", BF16, 0),  # neither knows bf16
        ("Tesla T4", BF16, 0),
        ("Tesla T4", FP16, 65),
        ("AMD Instinct MI300X", BF16, 1307.4),
        ("NVIDIA GeForce RTX 4090", BF16, 165.2),
        ("NVIDIA GeForce RTX 3090", BF16, 71),
        # Others, parts of a device, other numbers.
        ("NVIDIA A10G", BF16, 0),
        ("NVIDIA GeForce RTX 4090 D", BF16, 0),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", BF16, 0),
        ("NVIDIA GeForce RTX 3090 Ti", BF16, 0),
        ("NVIDIA A100-SXM4-80GB MIG 3g.40gb", BF16, 0),
        ("CPU", FP32, 0),
        ("NVIDIA H200", torch.float64, 0),
    ],
)
def test_known_peaks(name, dtype, tflops):
    assert known_peak(name, dtype, tf32=False) == tflops


def test_short_numbers_within_fp32_are_faster_where_a_device_has_them():
    assert known_peak("NVIDIA H200", FP32, tf32=True) == 494.7 > known_peak("NVIDIA H200", FP32, tf32=False)
    assert known_peak("Tesla T4", FP32, tf32=True) == 8.1


def test_a_peak_is_known_or_told_or_measured(monkeypatch):
    assert peak_of("known", "cpu", FP32) == 0
    assert peak_of(1.5, "cpu", FP32) == 1.5e12
    # Products of 512^3 in 2 ms, 1 ms and 4 ms, then half a second is over: the fastest counts.
    times = iter([0.0, 0.0, 0.0, 0.002, 0.1, 0.1, 0.101, 0.2, 0.3, 0.304, 0.6])
    monkeypatch.setattr(peaks.time, "perf_counter", lambda: next(times))
    assert peak_of("measured", "cpu", FP32) == pytest.approx(2 * 512**3 / 0.001)


def test_the_precision_that_an_engine_set_is_read_as_torch_has_it(monkeypatch):
    """torch refuses to tell through its old switch what the new one has set."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA H200")
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    try:
        assert peak_of("known", "cuda:0", FP32) < 494.7e12
        allow_tf32()
        assert peak_of("known", "cuda:0", FP32) == 494.7e12
    finally:
        matmul.fp32_precision = before


def test_what_is_measured_is_what_a_product_takes():
    found = measured_peak("cpu", FP32)
    assert 1e9 < found < 1e13  # FLOP/s of a core of today


def test_an_unknown_peak_is_told_with_a_remedy():
    (line,) = note_of("known", "cpu", FP32, 0.0)
    assert line == "MFU n/a: no known peak for CPU in float32; set tracking.peak=measured"
    assert note_of("measured", "cpu", BF16, 0.0912e12) == [
        "MFU of a measured peak of 0.0912 TFLOP/s per rank in bfloat16"
    ]
    assert note_of(100.0, "cpu", FP32, 1e14) == []
