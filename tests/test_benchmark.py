"""The yardsticks of the benchmark: the plain formulation, the FLOPs and bytes that it counts; and that it runs bare."""

import dataclasses
import functools
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import ROOT, command, environment
from test_steps import SPEC

from fada_jax import distributed
from fada_jax.methods import SoftLabels
from fada_jax.models import resize_align_corners
from fada_jax.models.convolution import convolve
from fada_jax.scripts.benchmarks import compilation, devices, flops, programs, traffic
from fada_jax.scripts.benchmarks.work import Work, batch_shapes, create_states, random_batch
from fada_jax.training import losses, steps


class Narrow(Work):
    """The same with a network that compiles in seconds."""

    spec = SPEC


WORK = Work("resnet18", 5, "float32", False, (64, 32), (48, 32), 1, 8, (1.0, 1.3), True)


def temporary(fn, *shapes):
    return jax.jit(fn).lower(*shapes).compile().memory_analysis().temp_size_in_bytes


def test_losses_in_row_blocks_take_a_quarter_of_the_memory_of_full_size_maps():
    count, size, low, k = 4, (720, 1280), (90, 160), 19
    logits, d_logits = (jax.ShapeDtypeStruct((count, *low, channels), jnp.float32) for channels in (k, 2 * k))
    labels = jax.ShapeDtypeStruct((count, *size), jnp.uint8)

    def plain_seg(z, labels):
        return losses.segmentation_loss(resize_align_corners(z, size), labels, 1.8)

    def plain_domains(d, z):
        a = SoftLabels().class_knowledge(resize_align_corners(z, size))
        return jnp.stack([losses.domain_loss(resize_align_corners(d, size), a, domain) for domain in (0, 1)])

    def blocks_seg(z, labels):
        return losses.mean(*steps.segmentation_sums(z, labels, 1.8, 32))

    def blocks_domains(d, z):
        sums, pixels = steps.domain_sums(d, z, SoftLabels(), (0, 1), size, 32)
        return sums / pixels

    for plain, blocks, arguments in ((plain_seg, blocks_seg, labels), (plain_domains, blocks_domains, logits)):
        first = logits if arguments is labels else d_logits
        memory = [temporary(jax.jacrev(fn), first, arguments) for fn in (plain, blocks)]
        assert memory[1] < memory[0] / 4, memory


@pytest.mark.parametrize(
    ("k", "stride", "dilation"), [(1, 1, 1), (3, 1, 1), (3, 1, 6), (3, 2, 1), (7, 2, 1), (1, 2, 1)]
)
def test_counted_flops_are_the_products_that_no_padding_enters(k, stride, dilation):
    height, width, channels, features = 9, 14, 3, 5
    image, kernel = jnp.ones((2, height, width, channels)), jnp.ones((k, k, channels, features))
    # With ones everywhere each output counts its own products.
    products = float(jnp.sum(convolve(image, kernel, stride, dilation)))
    fn = functools.partial(convolve, stride=stride, dilation=dilation)
    assert flops.layer_flops(fn, image, kernel) == [2 * products]


def test_a_released_step_needs_26_teraflop():
    work = dataclasses.replace(
        WORK, backbone="resnet101", classes=19, source=(1280, 720), target=(1024, 512), batch=4, dtype="bfloat16"
    )
    assert flops.least_flops(work) == pytest.approx(26.2e12, rel=0.02)


def test_communication_is_read_off_the_program():
    hlo = """
      %a = f32[4,100]{1,0} all-reduce(%x), channel_id=1, replica_groups=[2,4]<=[8], to_apply=%add
      %b = (f32[10]{0}, bf16[6]{0}) all-gather(%y, %z), channel_id=2, replica_groups={{0,1},{2,3}}, dimensions={0}
      %c = f32[8]{0} collective-permute(%w), channel_id=3, source_target_pairs={{0,1}}
      %d = f32[8]{0} add(%c, %c)
    """
    sent = compilation.communication(hlo, 8)
    assert sent == {"all-reduce": 1600 * 2 * 3 / 4, "all-gather": 52 / 2, "collective-permute": 32}
    hlo = """
      %a = bf16[100]{0} all-reduce-start(%x), replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, to_apply=%add
      %b = (f32[10]{0}, f32[20]{0}) all-gather-start(%y), replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0'}
      %c = bf16[100]{0} all-reduce-done(%a)
    """
    assert compilation.communication(hlo, 8) == {"all-reduce": 200 * 2 * 3 / 4, "all-gather": 80 / 2}


def test_communication_between_nodes_is_a_share_of_that_within_them():
    hlo = "%a = f32[1000] all-reduce(%x), replica_groups=[1,64]<=[64], to_apply=%add"
    sent = compilation.by_link(devices.CHIPS["h100"], hlo, 64)
    assert sent == {"NVLink": 4000 * 2 * 7 / 8, "network": 500 * 2 * 7 / 8}
    assert compilation.by_link(devices.CHIPS["v5e"], hlo, 64) == {"ICI": 4000 * 2 * 63 / 64}
    assert compilation.by_link(devices.CHIPS["h100"], hlo.replace("[1,64]", "[8,8]"), 64) == {"NVLink": 7000}


def test_bytes_moved_are_read_off_the_program():
    hlo = """
%body (p: (s32[], f32[8,100])) -> (s32[], f32[8,100]) {
  %p = (s32[], f32[8,100]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %all = f32[8,100]{1,0} get-tuple-element(%p), index=1
  %row = f32[1,100]{1,0} dynamic-slice(%all, %i, %i), dynamic_slice_sizes={1,100}
  ROOT %out = (s32[], f32[8,100]{1,0}) tuple(%i, %all)
}

%fused (a: f32[8,100], b: f32[100]) -> bf16[100] {
  %a = f32[8,100]{1,0} parameter(0)
  %b = f32[100]{0} parameter(1)
  %first = f32[1,100]{1,0} slice(%a), slice={[0:1], [0:100]}
  %flat = f32[100]{0} bitcast(%first)
  %sum = f32[100]{0} add(%flat, %b)
  ROOT %half = bf16[100]{0} convert(%sum)
}

ENTRY %main (x: f32[8,100], y: f32[100]) -> bf16[100] {
  %x = f32[8,100]{1,0} parameter(0)
  %y = f32[100]{0} parameter(1)
  %near = (f32[100]{0:T(128)S(1)}, f32[100]{0:T(128)}, u32[]{:S(2)}) copy-start(%y)
  %y_near = f32[100]{0:T(128)S(1)} copy-done(%near)
  %start = (s32[], f32[8,100]{1,0}) tuple(%zero, %x)
  %loop = (s32[], f32[8,100]{1,0}) while(%start), body=%body, backend_config={"known_trip_count":{"n":"8"}}
  %product = (f32[8,8]{1,0}, s8[4096]{0}) custom-call(%x, %x), custom_call_target="__cublas$lt$matmul"
  ROOT %result = bf16[100]{0} fusion(%x, %y_near), kind=kLoop, calls=%fused, metadata={op_name="jit(f)/add"}
}
"""
    assert [(mover.kind, mover.source, mover.size) for mover in traffic.movers(hlo)] == [
        ("copy-start", "", 400),
        ("dynamic-slice", "", 8 * 800),
        ("__cublas$lt$matmul", "", 2 * 3200 + 256),
        ("fusion", "jit(f)/add", 400 + 200),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v5e-8", "v5p-64"])
def test_a_small_network_compiles_for_a_tpu_slice_that_is_not_here(name):
    pytest.importorskip("libtpu", reason="needs XLA's compiler for TPUs: pip install 'fada-jax[tpu]'")
    chosen, chip = devices.absent(name, 0), devices.CHIPS[devices.TARGETS[name].chip]
    work = Narrow(**dataclasses.asdict(WORK) | {"batch": len(chosen), "dtype": "bfloat16"})
    row = compilation.compile_once(work, "ours", distributed.make_mesh(devices=chosen), "tpu", chip=chip)
    assert row["flops"] > flops.least_flops(work) / len(chosen)
    assert 0 < row["held_bytes"] < chip.memory
    # No less than the parameters, and the gradients that each device sends.
    assert row["moved_bytes"] > row["argument_bytes"] > 0
    assert row["link_bytes"]["ICI"] == row["sent_bytes"]["all-reduce"] > 0


@pytest.mark.slow
def test_the_plain_formulation_is_the_same_iteration():
    work = Narrow(**dataclasses.asdict(WORK))
    states = jax.jit(functools.partial(create_states, work))()
    batch = random_batch(batch_shapes(work), work.classes)
    results = [jax.jit(functools.partial(step, work))(states, batch) for step in programs.STEPS.values()]
    for name, value in results[1][1].items():
        assert float(results[0][1][name]) == pytest.approx(float(value), rel=1e-5)
    for name in states:
        moments = [jax.tree.leaves(result[0][name].opt_state) for result in results]
        for ours, plain in zip(*moments, strict=True):
            error = np.linalg.norm(np.subtract(ours, plain)) / max(np.linalg.norm(plain), 1e-12)
            assert error < 1e-4


def test_a_wrong_command_or_size_is_one_line():
    assert "step, infer, compile, input" in command("scripts/benchmark.py", expect=1)
    assert "--source_size=64: must be WIDTHxHEIGHT of at least 32" in command(
        "scripts/benchmark.py", "compile", "--source_size=64", expect=1
    )


@pytest.mark.slow
def test_a_bare_machine_measures_both_frameworks(tmp_path):
    for name in ("tensorflow", "tensorflow_datasets", "ml_collections", "PIL", "tensorboardX", "sklearn"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('not on this machine')\n")
    tiny = ("--backbone=resnet18", "--batch=1", "--source_size=64x32", "--target_size=64x32", "--dtype=float32")
    for name, options in (("step", ()), ("infer", ("--scales=1,1.3",))):
        output = tmp_path / f"{name}.json"
        result = subprocess.run(
            [sys.executable, "scripts/benchmark.py", name, *tiny, *options, "--compare=torch", "--cores=1",
             "--rounds=2", "--repeats=2", "--warmup=1", f"--output={output}"],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=environment() | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        )  # fmt: skip
        assert result.returncode == 0, result.stderr[-2000:]
        measured = json.loads(output.read_text())
        for framework in ("jax", "torch"):
            assert len(measured[framework]["seconds"]) == 4
            assert 0 < measured[framework]["share_of_product"] < 1.5
        assert measured["ratio"]["median_seconds"] > 0
