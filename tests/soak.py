"""Trains a tiny stage for thousands of steps and prints how memory, open files and threads grow.

  python tests/soak.py --out=DIR --steps=5000

The adversarial stage with checkpoints, target images, scores and logs as in any run, on 48x32 images. Each sample is
taken from outside, from /proc; the slope is a least-squares line over the second half, after what is allocated once.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from commands import ROOT, environment
from interruptions import OPTIONS, make_data

CONFIG = "--config=configs/gta5_to_cityscapes.py:size=miniature,stage=adaptation"


def sample(process):
    """Resident MiB, open files and threads of a process."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    resident, threads = (int(re.search(rf"{key}:\s+(\d+)", status)[1]) for key in ("VmRSS", "Threads"))
    return resident / 1024, len(os.listdir(f"/proc/{process.pid}/fd")), threads


def soak(out, steps):
    """Runs the stage; returns samples [n, 4] (step, resident MiB, open files, threads) and what it left in $TMPDIR."""
    data_dir = make_data(out)
    overrides = dict(option.split("=") for option in OPTIONS)
    every = max(steps // 20, 1)
    overrides |= {
        "--config.total_steps": steps, "--config.checkpoint_every": every, "--config.eval_every": 2 * every,
        "--config.log_every": max(steps // 200, 1), "--config.generator_optimizer.schedule_steps": steps + 1,
        "--config.discriminator_optimizer.schedule_steps": steps + 1,
    }  # fmt: skip
    arguments = ["-m", "fada_jax.train", CONFIG, f"--config.data_dir={data_dir}", f"--workdir={out}/w"]
    arguments += [f"{key}={value}" for key, value in overrides.items()]
    samples = []
    with tempfile.TemporaryDirectory(dir=out) as temporary, (out / "errors.txt").open("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, "-u", *arguments],
            cwd=ROOT,
            env={**environment(), "XLA_FLAGS": "", "TMPDIR": temporary},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        for line in process.stdout:
            if match := re.match(r"adversarial\s+(\d+)/\d+ .*loss_", line):
                if int(match[1]) < steps:
                    samples.append((int(match[1]), *sample(process)))
                if int(match[1]) % every == 0:
                    print(line.rstrip(), *(f"{value:.0f}" for value in samples[-1][1:]), flush=True)
        if process.wait():
            errors.seek(0)
            raise RuntimeError(errors.read()[-3000:])
        left = sorted(os.listdir(temporary))
    return np.array(samples), left


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=5000)
    options = parser.parse_args()
    samples, left = soak(options.out.absolute(), options.steps)
    half = samples[len(samples) // 2 :]
    print(f"{options.steps} steps, {len(samples)} samples; growth over the second half, per 1,000 steps:")
    for i, name in enumerate(("resident MiB", "open files", "threads"), start=1):
        slope = np.polyfit(half[:, 0], half[:, i], 1)[0] * 1000
        print(f"  {name:<13}{half[0, i]:>8.0f} -> {half[-1, i]:>6.0f}   slope {slope:+.2f}")
    print(f"left in the temporary folder: {', '.join(left) or 'nothing'}")


if __name__ == "__main__":
    main()
