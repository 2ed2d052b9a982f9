"""What another attempt may mend, whatever library says so: in tasks, and where a run folder is looked into."""

import http.client
import os
import pickle
import socket
import urllib.error
from functools import partial
from pathlib import Path

import aiohttp
import botocore.exceptions
import fsspec
import httpx2
import pytest
import torch
import urllib3
from test_run_folder import a_part, a_record, make_plan
from yarl import URL

from exemplar_ray.data.decode import UndecodableImageError, decode
from exemplar_ray.errors import ShardError, UsageError
from exemplar_ray.executor.cluster import Cluster
from exemplar_ray.executor.failures import LESS_MEMORY, reason_of
from exemplar_ray.executor.resources import Resources
from exemplar_ray.executor.terminal import said_of
from exemplar_ray.runs.run_folder import RunFolder, TornPartError
from exemplar_ray.storage import transient
from exemplar_ray.storage.hub_uri import AccessError, NoAnswerError
from exemplar_ray.storage.transient import is_out_of_memory, is_transient


def client_error(status, code="Whatever"):
    response = {"Error": {"Code": code, "Message": ""}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return botocore.exceptions.ClientError(response, "GetObject")


def answered(status):
    """aiohttp's, which does not come through pickling as it was."""
    request = aiohttp.RequestInfo(URL("http://x"), "GET", {}, URL("http://x"))
    return aiohttp.ClientResponseError(request, (), status=status)


def caused(error, cause):
    """Return an error as `raise error from cause` leaves it."""
    error.__cause__ = cause
    return error


class UnpicklableError(OSError):
    """A time-out with a connection in it."""

    def __init__(self):
        super().__init__("timed out")
        self.connection = socket.socket()
        self.connection.close()
        self.give_up = lambda: None


CONNECTIONS = {
    "botocore's endpoint": lambda: botocore.exceptions.EndpointConnectionError(endpoint_url="http://x"),
    "botocore's connection": lambda: botocore.exceptions.ConnectionClosedError(endpoint_url="http://x"),
    "botocore's time-out": lambda: botocore.exceptions.ReadTimeoutError(endpoint_url="http://x"),
    "bytes that are not those sent": lambda: botocore.exceptions.FlexibleChecksumError(error_msg="Expected checksum x"),
    "botocore's proxy": lambda: botocore.exceptions.ProxyConnectionError(proxy_url="http://x"),
    "aiohttp's payload": lambda: aiohttp.ClientPayloadError("cut short"),
    "aiohttp's server": lambda: aiohttp.ServerDisconnectedError(),
    "httpx's connection": lambda: httpx2.ConnectError("refused"),
    "urllib3's": lambda: urllib3.exceptions.ProtocolError("reset"),
    "http's": lambda: http.client.IncompleteRead(b"half"),
    "a socket's": lambda: TimeoutError("timed out"),
    "that cannot be pickled": UnpicklableError,
    "503 of S3": lambda: client_error(503),
    "503 of a web server": lambda: answered(503),
    "a time-out of S3": lambda: client_error(400, "RequestTimeout"),
    "said by us": lambda: caused(RuntimeError("footer cannot be read"), TimeoutError("timed out")),
}


@pytest.mark.parametrize("name", CONNECTIONS)
def test_a_connection_may_be_another_one_next_time(name):
    error = CONNECTIONS[name]()
    assert is_transient(error)
    said = said_of(error)
    assert "aws configure" not in (said or "")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (client_error(404), False),
        (client_error(403), False),
        (client_error(429), True),
        (answered(404), False),
        (urllib.error.HTTPError("http://x", 404, "Not Found", {}, None), False),
        (urllib.error.HTTPError("http://x", 503, "Slow down", {}, None), True),
        (urllib.error.URLError("refused"), True),
        (FileNotFoundError("x"), False),
        (PermissionError("x"), False),
        (AccessError("x"), False),
        (NoAnswerError("x"), True),
        (ValueError("x"), False),
        (botocore.exceptions.NoCredentialsError(), False),
        # A file system that says "not found" to whatever happened.
        (caused(FileNotFoundError("http://x"), aiohttp.ClientConnectionError("refused")), True),
        (caused(FileNotFoundError("http://x"), answered(404)), False),
        (caused(UsageError("weights cannot be downloaded"), TimeoutError()), True),
        (caused(UsageError("weights cannot be read"), FileNotFoundError("x")), False),
        (caused(AccessError("gated"), answered(403)), False),
        # It says that trying again does not help.
        (caused(ShardError("broken"), OSError("not a parquet file")), False),
        (caused(ShardError("cannot be decoded"), MemoryError()), True),
    ],
)
def test_an_error_is_judged_by_what_it_says_or_stands_for(error, expected):
    assert is_transient(error) == expected


OUT_OF_MEMORY = [
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: ..."),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 5 bytes."),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("std::bad_alloc"),
    OSError(12, "Cannot allocate memory"),
    caused(UsageError("the model cannot be built"), MemoryError()),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=repr)
def test_memory_that_ran_out_is_called_that_and_what_to_do(error):
    assert is_out_of_memory(error)
    assert is_transient(error)
    assert reason_of(error).startswith("out of memory: ")
    assert reason_of(error).endswith(LESS_MEMORY)


@pytest.mark.parametrize("error", [RuntimeError("shape mismatch"), ValueError("out of memory"), OSError("broken")])
def test_other_errors_are_not(error):
    assert not is_out_of_memory(error)


def test_an_image_that_there_is_no_memory_for_is_not_a_broken_one(monkeypatch):
    for error, expected in {
        MemoryError(): MemoryError,
        OSError("out of memory error when reading image file"): MemoryError,
        OSError("broken data stream when reading image file"): UndecodableImageError,
    }.items():
        monkeypatch.setattr("exemplar_ray.data.decode.Image.open", Flaky(None, 1, lambda error=error: error))
        with pytest.raises(expected):
            decode(b"an image")


# In tasks -----------------------------------------------------------------------------------


def fail_once(folder, name):
    """Fail the first time."""
    marker = Path(folder, name)
    if not marker.exists():
        marker.touch()
        raise {**CONNECTIONS, "memory": MemoryError, "usage": usage_error}[name]()
    return "done"


def usage_error():
    return caused(UsageError("the weights cannot be downloaded"), TimeoutError("timed out"))


def always_fail(name):
    if name == "exits":
        raise SystemExit("usage: train.py CHECKPOINT")
    raise {
        "memory": RuntimeError("DefaultCPUAllocator: not enough memory"),
        "usage": usage_error(),
        "unpicklable": UnpicklableError(),
        "ours": ShardError("no image column"),
    }[name]


@pytest.mark.usefixtures("ray_cluster")
def test_what_is_transient_is_tried_again_whatever_library_it_comes_from(tmp_path):
    names = [*CONNECTIONS, "memory", "usage"]
    with Cluster(Resources(retries=1)) as cluster:
        outcomes = list(cluster.map("test_failures:fail_once", [(name, name) for name in names], str(tmp_path)))
    assert {outcome.key: (outcome.value, outcome.error, outcome.attempts) for outcome in outcomes} == dict.fromkeys(
        names, ("done", None, 2)
    )


@pytest.mark.usefixtures("ray_cluster")
def test_what_is_given_up_says_why_and_what_ends_a_program_ends_no_worker():
    with Cluster(Resources(retries=1)) as cluster:
        items = [(name, name) for name in ("memory", "unpicklable", "ours", "exits")]
        outcomes = {outcome.key: outcome for outcome in cluster.map("test_failures:always_fail", items)}
        assert outcomes["memory"].error.startswith("out of memory: RuntimeError: DefaultCPUAllocator: not enough")
        assert outcomes["memory"].error.endswith(LESS_MEMORY)
        assert outcomes["unpicklable"].error == "UnpicklableError: timed out"
        assert outcomes["ours"].error == "no image column"
        assert outcomes["exits"].error == "SystemExit: usage: train.py CHECKPOINT"
        found = {name: (one.attempts, one.transient, one.lost) for name, one in outcomes.items()}
        passing, for_good = (2, True, False), (1, False, False)
        assert found == {"memory": passing, "unpicklable": passing, "ours": for_good, "exits": for_good}
        assert all("always_fail" in one.details for one in outcomes.values())
        with pytest.raises(UsageError, match="the weights cannot be downloaded"):
            list(cluster.map("test_failures:always_fail", [("usage", "usage")]))


# In a run folder ----------------------------------------------------------------------------


@pytest.fixture(params=["local disk", "object store"])
def folder(request, tmp_path, monkeypatch):
    """A run folder with one part."""
    monkeypatch.setattr(transient, "_FIRST_PAUSE_SECONDS", 0.001)
    memory = fsspec.filesystem("memory")
    folder = RunFolder(str(tmp_path / "run") if request.param == "local disk" else "memory://bucket/run")
    plan = make_plan()
    folder.adopt(plan.manifest())
    folder.commit(0, a_part(), a_record(plan, 0))
    yield folder
    monkeypatch.undo()
    if memory.exists("/bucket"):
        memory.rm("/bucket", recursive=True)


class Flaky:
    """Calls through, but for the first so many times."""

    def __init__(self, function, times, error):
        self.function, self.times, self.error = function, times, error

    def __call__(self, *arguments, **named):
        if self.times:
            self.times -= 1
            raise self.error()
        return self.function(*arguments, **named)


def disturb(monkeypatch, folder, times, error, look):
    """Have what looks into a folder's storage, or writes there, fail so many times each."""
    if folder._local:
        # Making folders asks for what is there, too.
        places = [(os, "replace")] if look == "commit" else [(os, "stat"), (os, "scandir"), (folder, "_read_once")]
    else:
        # Of the class, so that another folder's is the same.
        places = [(type(folder._fs), name) for name in ("info", "ls", "cat_file", "pipe_file", "rm_file")]
    for owner, name in places:
        function = getattr(owner, name)
        flaky = Flaky(function, times, error)
        if isinstance(owner, type):
            monkeypatch.setattr(owner, name, lambda *given, _flaky=flaky, **named: _flaky(*given, **named))
        else:
            monkeypatch.setattr(owner, name, flaky)


NO_ANSWER = {
    "a time-out": lambda: TimeoutError("timed out"),
    "no connection": lambda: botocore.exceptions.EndpointConnectionError(endpoint_url="http://x"),
    "not found, for want of an answer": lambda: caused(FileNotFoundError("x"), aiohttp.ServerDisconnectedError()),
}
LOOKS = {
    "exists": lambda folder: folder.exists("run.json"),
    "has_part": lambda folder: folder.has_part(0),
    "read_json": lambda folder: folder.read_json("run.json") is not None,
    "names": lambda folder: "000000.json" in list(folder.names("parts")),
    "state": lambda folder: list(folder.state(make_plan().manifest()).completed) == [0],
    "committed": lambda folder: folder.committed(0, make_plan().shards[0], make_plan().fingerprint) is not None,
    "read_parts": lambda folder: [p for p, _ in folder.read_parts([0], make_plan().fingerprint)] == [0],
    "read_run": lambda folder: bool(folder.read_run()),
    "adopt": lambda folder: list(folder.adopt(make_plan().manifest()).completed) == [0],
    "commit": lambda folder: folder.commit(0, a_part(), a_record(make_plan(), 0)) is not None,
}


@pytest.mark.parametrize("error", NO_ANSWER)
@pytest.mark.parametrize("look", LOOKS)
def test_a_storage_that_does_not_answer_once_or_twice_says_what_it_says_then(folder, monkeypatch, look, error):
    disturb(monkeypatch, folder, 2, NO_ANSWER[error], look)
    assert LOOKS[look](folder) is True


@pytest.mark.parametrize("error", NO_ANSWER)
@pytest.mark.parametrize("look", LOOKS)
def test_a_storage_that_does_not_answer_has_not_said_no(folder, monkeypatch, look, error):
    disturb(monkeypatch, folder, 1000, NO_ANSWER[error], look)
    expected = (
        botocore.exceptions.EndpointConnectionError if error == "no connection" else (TimeoutError, ConnectionError)
    )
    with pytest.raises(expected) as raised:
        LOOKS[look](folder)
    assert is_transient(raised.value)
    assert said_of(raised.value)


def test_what_is_not_there_is_said_at_once(folder, monkeypatch):
    monkeypatch.setattr(transient, "_FIRST_PAUSE_SECONDS", 100)
    assert folder.read_json("summary.json") is None
    assert not folder.exists("summary.json")
    assert list(folder.names("nothing")) == []
    folder.remove("nothing")


def test_a_torn_record_is_torn_and_one_that_cannot_be_read_is_not(folder, monkeypatch):
    folder.write("parts/000000.json", b'{"fingerprint": "')
    assert folder.read_json("parts/000000.json") is None
    monkeypatch.setattr(folder, "_read_once", Flaky(None, 1000, partial(ValueError, "no range requests")))
    with pytest.raises(ValueError, match="no range requests"):
        folder.read_json("parts/000000.json")


def test_a_failure_comes_through_pickling_as_it_is():
    from exemplar_ray.executor.failures import TaskError, failure_of

    failure = failure_of(UnpicklableError())
    assert pickle.loads(pickle.dumps(TaskError(failure))).failure == failure
    assert failure_of(TornPartError(3, "torn")).fatal.position == 3
