"""Devices to compile for that need not be here: TPU slices and H100s, with their makers' figures.

A figure here is an upper bound of what a program gets; times made of them are estimates from below, not measurements.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from collections.abc import Mapping
from typing import Any

from jax.experimental import topologies

from fada_jax.errors import UserError

# Description of an H100; XLA's GPU compiler asks the device for it if the machine has a GPU.
H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132 fpus_per_core: 128 threads_per_warp: 32 clock_rate_ghz: 1.98
  threads_per_block_limit: 1024 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  l2_cache_size: 52428800 memory_bandwidth: 3352320000000 device_memory_size: 84942979072
}
platform_name: "CUDA"
runtime_version { major: 12 minor: 8 }
dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


@dataclasses.dataclass(frozen=True)
class Chip:
    """What its maker publishes of one device.

    Attributes:
      peak: bfloat16 FLOP/s of matrix products, without sparsity.
      memory: bytes.
      bandwidth: bytes/s of the memory.
      links: bytes/s that it sends at once, by kind of link; the second kind joins nodes of ``node`` devices.
      source: of the figures.
      node: devices that the first kind of link joins; 0: all.
    """

    peak: float
    memory: float
    bandwidth: float
    links: Mapping[str, float]
    source: str
    node: int = 0


@dataclasses.dataclass(frozen=True)
class Target:
    """Devices that ``--on`` names.

    Attributes:
      chip: key of ``CHIPS``.
      topology: libtpu's name of the slice; empty: as many single GPUs as asked for.
      mode: libtpu's name of how a chip's cores are used; ``megacore`` makes one device of two.
    """

    chip: str
    topology: str = ""
    mode: str = "default"


# TPUs: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}; "inter-chip interconnect bandwidth", one way. Of a v4's links
# Jouppi et al. (ISCA 2023) give 6 times 50 GB/s. H100: NVIDIA's data sheet of the SXM5 module; NVLink one way is half
# of its 900 GB/s, and a DGX H100 has one 400 Gb/s network port for each GPU.
CHIPS: Mapping[str, Chip] = {
    "v4": Chip(275e12, 32 * 2**30, 1200e9, {"ICI": 300e9}, "docs.cloud.google.com/tpu/docs/v4; ISCA 2023"),
    "v5e": Chip(197e12, 16e9, 819e9, {"ICI": 200e9}, "docs.cloud.google.com/tpu/docs/v5e"),
    "v5p": Chip(459e12, 95e9, 2765e9, {"ICI": 600e9}, "docs.cloud.google.com/tpu/docs/v5p"),
    "v6e": Chip(918e12, 32e9, 1600e9, {"ICI": 400e9}, "docs.cloud.google.com/tpu/docs/v6e"),
    "h100": Chip(
        989e12, 80e9, 3350e9, {"NVLink": 450e9, "network": 50e9}, "NVIDIA H100 SXM5 and DGX H100 data sheets", 8
    ),
}
# In names of v4 and v5p slices Google counts cores, two to a chip; in those of v5e and v6e chips.
TARGETS: Mapping[str, Target] = {
    "h100": Target("h100"),
    "v4-8": Target("v4", "v4:2x2x1", "megacore"),
    "v5e-8": Target("v5e", "v5e:2x4"),
    "v5e-64": Target("v5e", "v5e:8x8"),
    "v5p-64": Target("v5p", "v5p:2x4x4", "megacore"),
    "v6e-16": Target("v6e", "v6e:4x4"),
}


def absent(name: str, count: int) -> list[Any]:
    """Devices to compile for, whatever is here.

    Args:
      name: key of ``TARGETS``.
      count: how many; 0: one GPU, or the whole slice.

    Raises:
      UserError: the compiler for them is not installed, or a slice has not as many.
    """
    target = TARGETS[name]
    if not target.topology:
        try:
            shape = f"1x1x{count or 1}"
            return topologies.get_topology_desc("h100", "cuda", target_config=H100, topology=shape).devices
        except NotImplementedError as error:
            raise UserError(f"--on={name} needs JAX's compiler for GPUs: pip install 'fada-jax[cuda]'") from error
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(f"--on={name} needs XLA's compiler for TPUs: pip install 'fada-jax[tpu]'")
    # Else libtpu waits for the metadata server of a cloud machine, and lets one process at a time compile.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    devices = topologies.get_topology_desc(
        target.topology, "tpu", chip_config_name=target.mode, chips_per_host_bounds=(2, 2, 1), num_slices=1
    ).devices
    if count not in (0, len(devices)):
        raise UserError(f"--on={name} has {len(devices)} devices: leave --devices out")
    return devices


def roofline(chip: Chip, flops: float, moved: float, sent: Mapping[str, float]) -> dict[str, float]:
    """Seconds that one device needs at least, by what keeps it busy: arithmetic, memory, and each kind of link.

    Args:
      chip: the device.
      flops, moved: FLOPs, and bytes to and from its memory.
      sent: bytes that it sends, by kind of link.
    """
    links = {link: sent[link] / speed for link, speed in chip.links.items() if sent.get(link)}
    return {"arithmetic": flops / chip.peak, "memory": moved / chip.bandwidth, **links}
