"""Work and limits against figures computed by hand, and against the table of the literature."""

from __future__ import annotations

import pytest

from esper_kernels import roofline
from esper_kernels.roofline import Device, Stored, Work

H100 = roofline.specification("NVIDIA H100 80GB HBM3")


def test_a_dense_layer() -> None:
    work = roofline.linear(16, roofline.dense(4096, 4096, 2), 2, "bf16")
    assert work.flops == 2 * 16 * 4096 * 4096
    assert work.bytes == 2 * (16 * 4096 + 4096 * 4096 + 16 * 4096)
    assert work.intensity == pytest.approx(536870912 / 33816576)


def test_runs_pay_for_their_indices_and_not_for_what_is_dropped() -> None:
    # A quarter of 4096 inputs in runs of 16 are 64 runs; 4096 outputs in groups of 128 are 32.
    stored = roofline.run_sparse(4096, 4096, 2, kept=64, rows=128, run=16)
    assert stored.bytes == 4096 * 1024 * 2 + 4 * 32 * 64
    assert stored.density == 0.25
    work = roofline.linear(1, stored, 2, "bf16")
    assert work.flops == 2 * 4096 * 1024
    assert work.bytes == 2 * (4096 + 4096) + stored.bytes


def test_a_last_group_and_a_last_run_that_are_shorter_are_stored_whole() -> None:
    stored = roofline.run_sparse(1000, 100, 4, kept=3, rows=128, run=16)
    assert stored.bytes == 1000 * 48 * 4 + 4 * 8 * 3
    assert stored.density == 0.48


def test_columns_that_nobody_reads_are_not_read() -> None:
    stored = Stored(8, 64, 128.0, 0.25)
    assert roofline.linear(4, stored, 2, "bf16", used=0.25).bytes == 2 * (4 * 16 + 4 * 8) + 128


@pytest.mark.parametrize(
    ("stored", "each"),
    [
        (roofline.dense(64, 64, 2), 2.0),
        (roofline.sparse24(64, 64, 2), 1.125),
        (roofline.int8(64, 64), 1 + 4 / 64),
        (roofline.run_sparse(64, 64, 1, 2, 64, 16, scales=True), 0.5 + 4 / 64 + 8 / 4096),
        (roofline.compressed(64, 64, 4, 1024), (1024 * 4 + 4 * (1024 + 65)) / 4096),
        (roofline.compressed(64, 64, 4, 1024, 32), (1024 * 4 + 4 * (1 + 3)) / 4096),
    ],
)
def test_bytes_a_weight(stored: Stored, each: float) -> None:
    assert stored.bytes / 4096 == pytest.approx(each)


def test_half_the_products_of_24_are_done() -> None:
    assert roofline.linear(8, roofline.sparse24(64, 64, 2), 2, "bf16").flops == 8 * 64 * 64


def test_a_gated_layer_writes_once() -> None:
    weight = roofline.dense(14336, 4096, 2)
    work = roofline.gated_linear(4, weight, weight, 2, "bf16")
    assert work.flops == 4 * 4 * 14336 * 4096
    assert work.bytes == 2 * (2 * 14336 * 4096 + 4 * 4096 + 4 * 14336)


def test_low_rank() -> None:
    work = roofline.low_rank_linear(4, 100, 200, 10, 4, "fp32")
    assert work.flops == 2 * 4 * 10 * 300
    assert work.bytes == 4 * (4 * 200 + 4 * 100 + 10 * 300)


def test_what_limits() -> None:
    device = Device("one", {"bf16": 100.0}, bandwidth=10.0, floor=2.0)
    assert device.limit(Work(1000, 10, "bf16")) == 10  # arithmetic
    assert device.limit(Work(100, 50, "bf16")) == 5  # memory
    assert device.limit(Work(1, 1, "bf16")) == 2  # the launch
    assert device.fraction(Work(100, 50, "bf16"), 20.0) == 0.25
    assert device.ridge("bf16") == 10
    with pytest.raises(KeyError):
        device.limit(Work(1, 1, "int8"))


def test_the_ridge_of_an_h100() -> None:
    assert H100 is not None
    assert H100.ridge("bf16") == pytest.approx(295, abs=1)


def test_decode_at_the_memory_roof() -> None:
    # One row: bytes decide, so a quarter of the weights takes a quarter of the time.
    assert H100 is not None
    dense = roofline.linear(1, roofline.dense(4096, 4096, 2), 2, "bf16")
    runs = roofline.run_sparse(4096, 4096, 2, kept=64, rows=128, run=16)
    sparse = roofline.linear(1, runs, 2, "bf16")
    assert H100.limit(dense) == pytest.approx(33570816 / 3.35e12)
    assert H100.limit(dense) / H100.limit(sparse) == pytest.approx(4.0, rel=0.01)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H100 NVL", "H100 NVL"),
        ("NVIDIA H200", "H200 SXM"),
        ("NVIDIA A100-SXM4-80GB", "A100 SXM 80 GB"),
        ("NVIDIA A100-SXM4-40GB", "A100 40 GB"),
        ("NVIDIA A100-PCIE-40GB", "A100 40 GB"),
        ("NVIDIA A100 80GB PCIe", "A100 PCIe 80 GB"),
        ("NVIDIA GeForce RTX 4090", None),
        ("AMD EPYC", None),
    ],
)
def test_devices_are_known_by_the_name_that_cuda_gives(name: str, found: str | None) -> None:
    device = roofline.specification(name)
    assert (device and device.name) == found
