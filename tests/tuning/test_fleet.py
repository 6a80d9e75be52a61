"""A fleet on this machine: a tracker and two servers, one of which is killed while it measures."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.tuning.small_session import small_layers, small_session
from tvm_sparse.errors import InputError
from tvm_sparse.tuning.fleet import count_servers, tracker_of
from tvm_sparse.tuning.log_files import read_log

KEY = "test-cpu"


@contextmanager
def process(module: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A Python module in a process group of its own, killed at the end."""
    nothing: Any = subprocess.DEVNULL
    command = [sys.executable, "-m", module, *arguments]
    started = subprocess.Popen(command, stdout=nothing, stderr=nothing, start_new_session=True)
    try:
        yield started
    finally:
        kill(started)


def kill(group: subprocess.Popen[bytes]) -> None:
    if group.poll() is None:
        os.killpg(group.pid, signal.SIGKILL)
        group.wait()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def at(port: int) -> tuple[str, ...]:
    """TVM's servers look for a port below 9199 unless told where to stop."""
    return "--port", str(port), "--port-end", str(port + 1)


def wait_for_servers(tracker: tuple[str, int, str], count: int) -> None:
    end = time.monotonic() + 90
    while True:
        try:
            if count_servers(tracker) == count:
                return
        except InputError:
            pass
        assert time.monotonic() < end, "the fleet does not start"
        time.sleep(0.2)


@pytest.mark.timeout(400)
def test_a_server_that_dies_costs_nothing(tmp_path: Path) -> None:
    port = free_port()
    tracker = ("127.0.0.1", port, KEY)
    with ExitStack() as stack:
        stack.enter_context(process("tvm.exec.rpc_tracker", "--host", "127.0.0.1", *at(port)))
        settings = ("--tracker", f"127.0.0.1:{port}", "--key", KEY, "--host", "127.0.0.1")
        servers = [stack.enter_context(process("tvm.exec.rpc_server", *settings, *at(free_port()))) for _ in "ab"]
        wait_for_servers(tracker, 2)
        told: list[Any] = []

        def kill_one_midway(tally: Any) -> None:
            told.append(tally.records[-1])
            if len(told) == 3:
                kill(servers[0])

        tuned = small_session(tmp_path, 8, kill_one_midway, layers=small_layers()[:1], tracker=tracker)[0]
        assert count_servers(tracker) == 1
    assert servers[0].returncode == -signal.SIGKILL
    records = read_log(tmp_path).records
    assert records == told and {record.outcome for record in records} == {"ok"} and tuned.trials == 8


def test_no_tracker_is_one_line() -> None:
    with pytest.raises(InputError, match=r"no RPC tracker answers at 127\.0\.0\.1:\d+: start one"):
        count_servers(("127.0.0.1", free_port(), KEY))


@pytest.mark.timeout(120)
def test_a_tracker_without_servers_is_one_line() -> None:
    port = free_port()
    with process("tvm.exec.rpc_tracker", "--host", "127.0.0.1", *at(port)):
        end = time.monotonic() + 60
        while time.monotonic() < end:
            try:
                count_servers(("127.0.0.1", port, KEY))
            except InputError as error:
                if "no server with the key" in str(error):
                    return
        pytest.fail("the tracker does not start")


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("127.0.0.1:9190", None),
        (None, "k"),
        ("127.0.0.1", "k"),
        (":9190", "k"),
        ("host:port", "k"),
        ("host:99999", "k"),
    ],
)
def test_half_an_address_is_refused(address: str | None, key: str | None) -> None:
    with pytest.raises(InputError, match="HOST:PORT"):
        tracker_of(address, key)


def test_addresses() -> None:
    assert tracker_of(None, None) is None
    assert tracker_of("127.0.0.1:9190", "k") == ("127.0.0.1", 9190, "k")
    assert tracker_of("[::1]:9190", "k") == ("::1", 9190, "k")
