"""Clocks and memory of a process, and the rates that follow from them."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np


def timed(once: Callable[[], Any], warmup: int, repeats: int) -> dict[str, list[float]]:
    """Wall and CPU seconds of ``repeats`` calls that wait for their result."""
    result: dict[str, list[float]] = {"seconds": [], "cpu_seconds": []}
    for i in range(warmup + repeats):
        began, cpu = time.perf_counter(), time.process_time()
        once()
        if i >= warmup:
            result["seconds"].append(time.perf_counter() - began)
            result["cpu_seconds"].append(time.process_time() - cpu)
    return result


def product_flops(operand: Callable[[int], Any], square: Callable[[Any], Any], accelerated: bool) -> float:
    """FLOP/s of the product of a large square matrix, made by ``operand`` of its size, with itself."""
    size = 8192 if accelerated else 2048
    matrix = operand(size)
    return 2.0 * size**3 / min(timed(lambda: square(matrix), 2, 10 if accelerated else 3)["seconds"])


def resident_bytes() -> int:
    """The most memory that this process has had in RAM."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def summary(measured: dict[str, Any], flops: float | None, images: int) -> dict[str, Any]:
    """Median and quartiles of the times, and the rates that follow from the median."""
    low, median, high = np.percentile(measured["seconds"], (25, 50, 75))
    rates = {}
    if flops is not None:
        rates = {"flops_per_second": flops / median, "share_of_product": flops / median / measured["product_flops"]}
    return {
        **measured,
        "median_seconds": median,
        "quartiles": [low, high],
        "median_cpu_seconds": float(np.median(measured["cpu_seconds"])),
        "images_per_second": images / median,
        **rates,
    }
