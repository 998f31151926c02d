"""How fast training images come out of a bucket whose every request takes 20 ms longer, beside a local folder.

  python tests/bucket_rate.py [--latency=0.02] [--images=24] [--output=docs/results/buckets.json]

Images of 1914x1052 as PNGs of about 2.5 MB are read at 1280x720, without colour jitter and with the released one, which
half of the adaptation stage's images have. Store, proxy and reader share this machine's cores.
"""

import argparse
import datetime
import itertools
import json
import os
import tempfile
import time
from pathlib import Path

import buckets

from fada_jax import files
from fada_jax.input_pipeline import conversion
from fada_jax.scripts.benchmarks import training_input
from fada_jax.storage import caches


def rate(data_dir, jitter, batches):
    """Images a second of wall time, after what starting costs."""
    stream = training_input.our_batches(data_dir, jitter)
    for _ in itertools.islice(stream, 4):
        pass
    began = time.perf_counter()
    for _ in itertools.islice(stream, batches):
        pass
    elapsed = time.perf_counter() - began
    stream.close()
    return batches * training_input.BATCH_SIZE / elapsed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency", type=float, default=0.02)
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--batches", type=int, default=24)
    parser.add_argument("--output", default="")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder)
        training_input.make_raw(local / "raw", options.images)
        conversion.convert(conversion.Conversion("gta5", local / "raw"), local / "data")
        rates = {("a local folder", jitter): rate(local / "data", jitter, options.batches) for jitter in ("", "jitter")}
        for scheme in ("gs", "s3"):
            with buckets.store(scheme, latency=options.latency) as store:
                os.environ.update(store.variables)
                buckets.forget_clients()
                remote = files.place(f"{store.base}/data")
                caches.uploaded(local / "data", remote)
                for jitter in ("", "jitter"):
                    rates[f"{scheme}://", jitter] = rate(remote, jitter, options.batches)
                caches.configure(str(local / "cache"), 10)
                for jitter in ("", "jitter"):
                    rates[f"{scheme}://, from the cache", jitter] = rate(remote, jitter, options.batches)
                caches.configure("", 0)
        rows = []
        for place in dict.fromkeys(place for place, _ in rates):
            row = [place]
            for jitter in ("", "jitter"):
                share = rates[place, jitter] / rates["a local folder", jitter]
                row += [round(rates[place, jitter], 1), None if place == "a local folder" else round(share, 2)]
            rows.append(row)
            print(*row)
        if options.output:
            head = {
                "command": f"python tests/bucket_rate.py --batches={options.batches}",
                "date": str(datetime.date.today()),
            }
            columns = ["images/s from", "without jitter", "share of local", "with jitter", "share of local"]
            table = {**head, "columns": columns, "formats": ["", ".0f", ".0%", ".0f", ".0%"], "rows": rows}
            Path(options.output).write_text(json.dumps({"rate": table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
