"""Buckets: what is asked of a store survives faults, and leases, lines, copies and folders keep their promises.

Real servers on this machine: moto for S3, gcp-storage-emulator for Google Cloud Storage, each behind ``buckets.Proxy``.
"""

import json
import sys
import threading
import time
import zlib

import buckets
import pytest
from etils import epath

from fada_jax import files, folders
from fada_jax.errors import UserError
from fada_jax.storage import caches, leases, lines, objects, paths


@pytest.fixture(scope="module", params=["gs", "s3"])
def store(request):
    with pytest.MonkeyPatch.context() as patch, buckets.store(request.param) as running:
        for key, value in running.variables.items():
            patch.setenv(key, value)
        buckets.forget_clients()
        yield running
    buckets.forget_clients()


@pytest.fixture
def folder(store, request):
    name = request.node.name.replace("[", "-").replace("]", "")
    yield files.place(f"{store.base}/{name}")
    store.set(faults=0.0, latency=0.0, most=None, kinds=buckets.KINDS)


@pytest.fixture
def patience(monkeypatch):
    monkeypatch.setenv(objects.PATIENCE, "2")


# Paths ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("hdfs://host/data", "hdfs:// is not supported"),
        ("http://host/data", "http:// is not supported"),
        ("gs:/bucket/data", "write gs://BUCKET/NAME"),
        ("gs://", "write gs://BUCKET/NAME"),
        ("s3:///data", "write s3://BUCKET/NAME"),
        ("gs://bucket/../other", "write gs://BUCKET/NAME"),
        ("S3://bucket/data", "S3:// is not supported"),
    ],
)
def test_a_path_that_nothing_serves_is_refused_at_once(path, problem):
    with pytest.raises(UserError, match=f"--workdir={path}: .*{problem}"):
        files.place(path, "--workdir")


@pytest.mark.parametrize(("scheme", "library"), [("gs", "gcsfs"), ("s3", "s3fs")])
def test_a_missing_client_names_its_extra(monkeypatch, scheme, library):
    objects._system.cache_clear()
    monkeypatch.setitem(sys.modules, library, None)
    for name in ("gcs", "gs", "s3"):  # As if none had been used in this process.
        monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, name, raising=False)
    with pytest.raises(UserError, match=rf"needs {library}: pip install 'fada-jax\[{objects.SCHEMES[scheme][2]}\]'"):
        files.place(f"{scheme}://bucket/data")
    objects._system.cache_clear()


def test_paths_of_buckets_have_the_methods_of_paths(folder):
    assert str(files.place(f"{folder}//a///b/")) == f"{folder}/a/b"
    assert not folder.exists() and not folder.is_dir() and list(folder.iterdir()) == []
    (folder / "a" / "x.png").write_bytes(b"123")
    (folder / "a" / "deep" / "y.txt").write_text("größer\n")
    (folder / "ab.png").write_bytes(b"")
    assert (folder / "a").is_dir() and not (folder / "a").is_file() and (folder / "a").exists()
    assert (folder / "a" / "x.png").is_file() and (folder / "a" / "x.png").stat().st_size == 3
    assert (folder / "a" / "deep" / "y.txt").read_text() == "größer\n"
    assert (folder / "a" / "x.png").read_range(1, 2) == b"2"
    names = lambda found: sorted(str(path).removeprefix(f"{folder}/") for path in found)  # noqa: E731
    assert names(folder.iterdir()) == ["a", "ab.png"] == sorted(path.name for path in folder.iterdir())
    assert names(folder.rglob("*")) == ["a/deep/y.txt", "a/x.png", "ab.png"]
    assert names(folder.glob("*.png")) == ["ab.png"] and names(folder.glob("*/*.png")) == ["a/x.png"]
    assert names(folder.glob("**/*.txt")) == ["a/deep/y.txt"]
    with paths.listed(folder):
        assert names(folder.rglob("*.png")) == ["a/x.png", "ab.png"]
        assert (folder / "a").is_dir() and not (folder / "a").is_file() and (folder / "ab.png").stat().st_size == 0
        assert names((folder / "a").iterdir()) == ["a/deep", "a/x.png"] and not (folder / "c").exists()
    (folder / "ab.png").unlink()
    (folder / "ab.png").unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError):
        (folder / "ab.png").unlink()
    with pytest.raises(FileNotFoundError, match="no such object"):
        (folder / "ab.png").read_bytes()
    with pytest.raises(UserError, match=r"ab.png cannot be read: no such object"):
        files.read_bytes(folder / "ab.png")


# Requests ------------------------------------------------------------------------------------------------------------


def test_faults_cost_time_and_nothing_else(store, folder):
    store.set(faults=0.2)
    before = sum(store.set()["counts"].values())
    written = {}
    for i in range(12):
        data = bytes([i]) * (1000 * i + 1)
        (folder / f"{i}.bin").write_bytes(data)
        written[f"{i}.bin"] = data
        assert (folder / f"{i}.bin").read_bytes() == data
        assert (folder / f"{i}.bin").read_range(0, 10) == data[:10]
    assert folder.tree() == {name: len(data) for name, data in sorted(written.items())}
    assert sum(store.set(faults=0.0)["counts"].values()) > before


@pytest.mark.slow  # gcsfs tries for half a minute before it says so.
def test_what_orbax_opens_is_whole_when_connections_are_cut(store, folder):
    """By ``etils.epath``, as orbax does. s3fs's own files are short then, and say nothing: else this is not needed."""
    data, path = bytes(range(256)) * 12, folder / "x"
    path.write_bytes(data)
    store.set(faults=0.4, kinds=["cut", "refused"])
    for _ in range(20):
        assert epath.Path(str(path)).read_bytes() == data
        epath.Path(str(path)).write_bytes(data)
    if store.scheme == "s3":
        client = objects.system(str(path))
        store.set(faults=0.4, kinds=["cut"], most=None)
        own = (super(objects._WholeObjects, client)._open(str(path), "rb") for _ in range(20))
        assert min(len(file.read()) for file in own) < len(data)


# gcsfs tries for half a minute by itself.
@pytest.mark.parametrize("store", [pytest.param("gs", marks=pytest.mark.slow), "s3"], indirect=True)
def test_a_store_that_stays_silent_ends_in_one_line(store, folder, patience):
    store.set(faults=1.0, kinds=["refused"])
    with pytest.raises(UserError, match=r"cannot be read: the store gave no answer for \d+ seconds \("):
        files.read_bytes(folder / "x")
    with pytest.raises(OSError, match="no answer"), files.replacing(folder / "y") as partial:
        partial.write_bytes(b"1")


def test_an_output_that_cannot_be_written_is_refused_before_the_work(store, folder, patience):
    with pytest.raises(UserError, match="cannot be written: no such bucket"):
        files.check_output(f"{store.scheme}://no-such-bucket/out.json", "--output")
    (folder / "theirs.json").write_text("{}")
    with pytest.raises(UserError, match="was not made by fada-jax"):
        files.check_output(folder / "theirs.json", "--output")
    (folder / "ours.json").write_text('{"made_by": "fada-jax"}')
    files.check_output(folder / "ours.json", "--output")
    with pytest.raises(UserError, match="is a folder: name a file"):
        files.check_output(folder, "--output")
    assert set(folder.tree()) == {"theirs.json", "ours.json"}


def test_a_conditional_write_is_done_once_whatever_the_answers(store, folder):
    path = str(folder / "lock")
    store.set(faults=0.3)
    version = objects.write_if(path, b"first", "")
    assert version and objects.read(path) == b"first"
    assert objects.write_if(path, b"second", "") is None
    for i in range(8):
        version = objects.write_if(path, b"turn %d" % i, version)
        assert version and objects.read(path) == b"turn %d" % i
    objects.write(path, b"somebody else's")
    assert objects.write_if(path, b"late", version) is None and objects.read(path) == b"somebody else's"


# Leases --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(leases, "RENEW", 0.3)
    monkeypatch.setattr(leases, "STANDS", 3.0)


def test_a_lease_is_held_by_one_and_passed_on(folder, quick):
    with leases.held(folder / "lock", "busy") as lease:
        with pytest.raises(UserError, match=r"busy \(process \d+ on "), leases.held(folder / "lock", "busy"):
            pass
        lease.confirm()
    with leases.held(folder / "lock", "busy"):
        pass


def test_a_lease_of_many_that_ask_at_once_goes_to_one(folder, quick):
    got, refused = [], []

    def ask():
        try:
            with leases.held(folder / "lock", "busy"):
                got.append(threading.get_ident())
                time.sleep(4)
        except UserError:
            refused.append(threading.get_ident())

    threads = [threading.Thread(target=ask) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1 and len(refused) == 4


def _holder(**changes):
    values = {**leases.Holder.this().__dict__, **changes}
    return leases._text(leases.Holder(**values), 0)


def test_a_holder_that_is_gone_loses_its_lease(folder, quick):
    # On this machine it is seen at once, on another one when it is not renewed.
    for changes, at_least, at_most in (({"pid": 2**22 - 1}, 0, 2), ({"machine": "another"}, 2.5, 6)):
        (folder / "lock").write_bytes(_holder(**changes))
        began = time.monotonic()
        with leases.held(folder / "lock", "busy"):
            assert at_least <= time.monotonic() - began <= at_most


def test_a_stolen_lease_ends_its_holder_before_it_writes_again(folder, quick):
    with leases.held(folder / "lock", "busy") as lease:
        files.write_text(folder / "mine.txt", "1")
        (folder / "lock").write_bytes(_holder(host="thief", pid=7))
        with pytest.raises(UserError, match=r"another run has taken this place over \(process 7 on thief\)"):
            lease.confirm()
        with pytest.raises(UserError, match="taken this place over"):
            files.write_text(folder / "mine.txt", "2")
    assert (folder / "mine.txt").read_text() == "1"
    assert json.loads((folder / "lock").read_text())["host"] == "thief"


def test_a_lease_is_not_taken_from_a_users_file(folder, quick):
    (folder / "lock").write_text("my notes")
    with (
        pytest.raises(UserError, match="is no lease of fada-jax"),
        leases.held(folder / "lock", "busy"),
    ):
        pass
    assert (folder / "lock").read_text() == "my notes"


# Lines, folders and copies -------------------------------------------------------------------------------------------


def test_lines_are_parts_until_they_are_merged(folder, monkeypatch):
    path = folder / "metrics.jsonl"
    with lines.appending(path) as file:
        file.add("one\n")
        file.flush()
        file.add("two\n")
        assert lines.read(path) == ["one\n"]
        file.flush()
        assert lines.read(path) == ["one\n", "two\n"] and not path.is_file()
    assert path.read_text() == "one\ntwo\n" and folder.tree().keys() == {"metrics.jsonl"}
    # A run that was killed leaves parts; the next one cuts what it does again.
    killed = lines.appending(path)
    file = killed.__enter__()
    file.add("three\n")
    file.flush()
    assert lines.read(path) == ["one\n", "two\n", "three\n"]
    lines.replace(path, ["one\n", "two\n"])
    assert lines.read(path) == ["one\n", "two\n"] and folder.tree().keys() == {"metrics.jsonl"}


def test_a_folder_is_published_whole_or_not_at_all(folder):
    target = folder / "model"
    with folders.making(target) as partial:
        (partial / "deep").mkdir()
        (partial / "deep" / "a.txt").write_text("1")
        assert not target.exists()
    first = folders.published(target)
    assert files.tree(first) == ["deep/a.txt"]
    with pytest.raises(RuntimeError), folders.making(target) as partial:
        raise RuntimeError
    assert folders.published(target) == first
    with folders.making(target) as partial:
        (partial / "b.txt").write_text("2")
        with pytest.raises(UserError, match="being made by another process"), folders.making(target):
            pass
    assert files.tree(folders.published(target)) == ["b.txt"] and not first.exists()
    (folder / "theirs" / "x").write_text("mine")
    with pytest.raises(UserError, match="was not made for this"), folders.making(folder / "theirs"):
        pass
    assert files.tree(folder / "theirs") == ["x"]


def test_copies_follow_what_the_store_holds(folder):
    (folder / "w.pth").write_bytes(b"one")
    first = files.fetched(folder / "w.pth")
    assert first.read_bytes() == b"one" and files.fetched(folder / "w.pth") == first
    (folder / "w.pth").write_bytes(b"other")
    assert files.fetched(folder / "w.pth").read_bytes() == b"other"
    with pytest.raises(UserError, match=r"w\.pth is wrong"), files.local_copy(folder / "w.pth") as copy:
        raise UserError(f"{copy} is wrong")


def test_records_are_kept_within_bounds_and_checked(store, folder, tmp_path):
    shard, payloads = folder / "1.0.0" / "x.tfrecord", [bytes([i]) * 1000 for i in range(5)]
    shard.write_bytes(b"".join(payloads))
    caches.configure(str(tmp_path), 2.5e-6)
    try:
        for _ in range(2):
            for i, payload in enumerate(payloads):
                assert caches.record(shard, 1000 * i, 1000, zlib.crc32(payload)) == payload
        kept = sorted((tmp_path / "fada_jax_records").glob("*/*"))
        assert len(kept) == 2 and all(path.stat().st_size == 1000 for path in kept)
        before = store.set()["requests"]
        assert caches.record(shard, 0, 1000, zlib.crc32(payloads[0])) == payloads[0]
        assert store.set()["requests"] == before
        kept[0].write_bytes(b"damaged")
        assert caches.record(shard, 0, 1000, zlib.crc32(payloads[0])) == payloads[0]
        # Another data set takes the room of one that is not read any more.
        caches.configure(str(tmp_path), 2.5e-6)
        other = folder / "2.0.0" / "x.tfrecord"
        other.write_bytes(payloads[3])
        assert caches.record(other, 0, 1000, zlib.crc32(payloads[3])) == payloads[3]
        assert sum(path.stat().st_size for path in (tmp_path / "fada_jax_records").glob("*/*")) <= 2500
    finally:
        caches.configure("", 0)


def test_a_cache_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--cache_dir=.* cannot be written"):
        caches.configure(str(tmp_path / "file"), 1.0)
    with pytest.raises(UserError, match="a local folder"):
        caches.configure("gs://bucket/cache", 1.0)
