"""Object stores on this machine: emulators of Google Cloud Storage and of S3 behind a proxy that delays and breaks.

  python tests/buckets.py --latency=0.02 --faults=0.1      # serves until it is interrupted, and prints the environment

Faults are drawn for each request, with a seed: an answer 503 instead of the store's, 503 after the store has done what
was asked, a connection cut in the middle of the answer, and no answer for a while. The proxy also enforces
``ifGenerationMatch`` and says generations, which the emulator of Google Cloud Storage does not.
"""

import argparse
import asyncio
import contextlib
import json
import random
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import aiohttp
import fsspec
from aiohttp import web

from fada_jax.storage import objects

BIN = Path(sys.executable).parent
KINDS = ("refused", "lost", "cut", "late")
_DROPPED = ("transfer-encoding", "content-length", "connection", "content-encoding", "keep-alive")
_UPLOAD = re.compile(r"/upload/storage/v1/b/([^/]+)/o$")


class Proxy:
    """Passes requests on to a store, or not.

    Args:
      target: address of the store.
      latency: seconds that every request takes longer.
      faults: share of requests that go wrong.
      seed: of the draw.
      most: requests that go wrong in all; None: no limit.
    """

    def __init__(self, target, latency=0.0, faults=0.0, seed=0, most=None):
        self.target, self.latency, self.faults, self.most = target, latency, faults, most
        self.random, self.counts, self.requests = random.Random(seed), dict.fromkeys(KINDS, 0), 0
        self.locks, self.kinds, self.late = {}, KINDS, 1.0

    def _fault(self):
        if not self.faults or (self.most is not None and sum(self.counts.values()) >= self.most):
            return None
        if self.random.random() >= self.faults:
            return None
        kind = self.random.choice(self.kinds)
        self.counts[kind] += 1
        return kind

    async def handle(self, request):
        if request.path == "/_proxy":
            values = await request.json() if request.can_read_body else {}
            for key, value in values.items():
                setattr(self, key, value)
            return web.json_response({"counts": self.counts, "requests": self.requests})
        self.requests += 1
        await asyncio.sleep(self.latency)
        fault, body = self._fault(), await request.read()
        if fault == "refused":
            return web.Response(status=503, text="try again")
        if fault == "late":
            await asyncio.sleep(self.late)
        key = self._key(request, body)
        async with self.locks.setdefault(key, asyncio.Lock()) if key else contextlib.nullcontext():
            if key and not await self._as_expected(request, key):
                return web.json_response({"error": {"code": 412, "message": "conditionNotMet"}}, status=412)
            generation = await self._generation(request)
            status, headers, data = await self._pass_on(request, body)
            if generation and status < 300:
                headers["x-goog-generation"] = generation
        if fault == "lost":
            return web.Response(status=503, text="try again")
        if fault == "cut":
            response = web.StreamResponse(status=status, headers=headers)
            response.content_length = len(data) + 10
            await response.prepare(request)
            await response.write(data[: len(data) // 2])
            request.transport.abort()
            return response
        return web.Response(status=status, headers=headers, body=data)

    async def _pass_on(self, request, body):
        headers = {k: v for k, v in request.headers.items() if k.lower() not in ("host", "content-length", "expect")}
        headers["Host"] = self.target.partition("://")[2] if "X-Amz-Date" not in headers else request.host
        address = f"{self.target}{request.raw_path}"
        async with self.session.request(
            request.method, _exact(address), headers=headers, data=body, allow_redirects=False
        ) as answer:
            data = await answer.read()
            kept = {k: v for k, v in answer.headers.items() if k.lower() not in _DROPPED}
            if request.method == "HEAD" and "Content-Length" in answer.headers:
                kept["Content-Length"] = answer.headers["Content-Length"]
            if self.own.encode() != self.target.encode():
                data = data.replace(self.target.encode(), self.own.encode())
                kept = {k: v.replace(self.target, self.own) for k, v in kept.items()}
            return answer.status, kept, data

    def _key(self, request, body):
        """Bucket and name that a conditional upload writes to; None for other requests."""
        found = _UPLOAD.search(request.path)
        if not found or request.method != "POST" or "ifGenerationMatch" not in request.query:
            return None
        name = request.query.get("name")
        if not name:
            part = re.search(rb"\{.*?\}", body, re.S)
            name = json.loads(part.group())["name"] if part else ""
        return found.group(1), name

    async def _as_expected(self, request, key):
        bucket, name = key
        quoted = re.sub(r"[^A-Za-z0-9_.~-]", lambda m: "".join(f"%{b:02X}" for b in m.group().encode()), name)
        now = await self._described(f"/storage/v1/b/{bucket}/o/{quoted}")
        return now == request.query["ifGenerationMatch"]

    async def _generation(self, request):
        """What a download of Google's says in its headers, and the emulator does not."""
        if request.method != "GET" or request.query.get("alt") != "media":
            return ""
        return await self._described(request.raw_path.partition("?")[0].replace("/download/", "/"))

    async def _described(self, path):
        """Generation of an object; '0' where there is none."""
        async with self.session.get(_exact(f"{self.target}{path}")) as answer:
            return (await answer.json())["generation"] if answer.status == 200 else "0"

    async def serve(self, port, ready):
        self.own = f"http://127.0.0.1:{port}"
        connector = aiohttp.TCPConnector(limit=64, force_close=True)
        async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as self.session:
            app = web.Application(client_max_size=2**30)
            app.router.add_route("*", "/{tail:.*}", self.handle)
            runner = web.AppRunner(app, access_log=None)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", port).start()
            ready.set()
            await asyncio.Event().wait()


def _exact(address):
    import yarl

    return yarl.URL(address, encoded=True)


def forget_clients():
    """Lets the next path of a bucket find the store that the environment names now."""
    for _, name, _ in objects.SCHEMES.values():
        fsspec.get_filesystem_class(name).clear_instance_cache()
    objects._system.cache_clear()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait(port):
    for _ in range(300):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    raise AssertionError(f"nothing answers at {port}")


@contextlib.contextmanager
def emulator(scheme):
    """Runs one store, with a bucket called ``bucket``; yields its address."""
    port = free_port()
    gs = ["gcp-storage-emulator", "start", "--host=127.0.0.1", f"--port={port}", "--in-memory"]
    command = {
        "gs": [*gs, "--default-bucket=bucket"],
        "s3": ["moto_server", "-H", "127.0.0.1", "-p", str(port)],
    }[scheme]
    process = subprocess.Popen([BIN / command[0], *command[1:]], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait(port)
        if scheme == "s3":
            import urllib.request

            request = urllib.request.Request(f"http://127.0.0.1:{port}/bucket", method="PUT")
            request.add_header("Authorization", "AWS4-HMAC-SHA256 Credential=x/20260101/us-east-1/s3/aws4_request")
            urllib.request.urlopen(request).close()
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def environment(scheme, address):
    """Variables by which the libraries find a store at an address."""
    if scheme == "gs":
        return {"STORAGE_EMULATOR_HOST": address, "TENSORSTORE_GCS_HTTP_URL": address}
    return {
        "AWS_ENDPOINT_URL": address, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y",
        "AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
    }  # fmt: skip


class Store:
    """A store behind a proxy in a process of its own.

    Attributes:
      base: ``gs://bucket`` or ``s3://bucket``.
      variables: environment of those who use it.
    """

    def __init__(self, scheme, process, address):
        self.scheme, self.process, self.address = scheme, process, address
        self.base, self.variables = f"{scheme}://bucket", environment(scheme, address)

    def set(self, **values):
        """Sets attributes of the proxy, and returns what it has counted."""
        import urllib.request

        data = json.dumps(values).encode()
        request = urllib.request.Request(f"{self.address}/_proxy", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)


@contextlib.contextmanager
def store(scheme, **options):
    """Runs an emulator and its proxy; options are of ``Proxy``."""
    flags = [f"--{key}={value}" for key, value in options.items() if value is not None]
    command = [sys.executable, __file__, f"--only={scheme}", *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield Store(scheme, process, json.loads(process.stdout.readline())[scheme])
    finally:
        process.terminate()
        process.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--faults", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--most", type=int)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        addresses = {}
        for scheme in [options.only] if options.only else ["gs", "s3"]:
            target, port, ready = stack.enter_context(emulator(scheme)), free_port(), threading.Event()
            proxy = Proxy(target, options.latency, options.faults, options.seed, options.most)
            threading.Thread(target=lambda: asyncio.run(proxy.serve(port, ready)), daemon=True).start()  # noqa: B023
            assert ready.wait(30)
            addresses[scheme] = f"http://127.0.0.1:{port}"
        if options.only:
            print(json.dumps(addresses), flush=True)
        else:
            for scheme, address in addresses.items():
                print("export", *(f"{k}={v}" for k, v in environment(scheme, address).items()), flush=True)
        import signal

        signal.signal(signal.SIGTERM, lambda *_: sys.exit())
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
