"""Candidates on other machines: TVM's tracker hands out its servers, one session a candidate.

A session can end because the candidate crashed or because its server did. Nobody can tell, so a candidate is tried on
another server before it is blamed.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from tvm_sparse.errors import InputError
from tvm_sparse.tuning.measuring import Place

#: What a session may last, and how long to wait for a tracker, in seconds.
SESSION_TIMEOUT_S, CONNECT_TIMEOUT_S = 60, 5.0
ATTEMPTS = 3


def tracker_of(address: str | None, key: str | None) -> tuple[str, int, str] | None:
    """Host, port and key of a tracker from HOST:PORT and the key; None where neither is given.

    Raises
    ------
    InputError
        One is missing, or the address is not of that form.
    """
    if address is None and key is None:
        return None
    if address is None or key is None:
        raise InputError("a fleet needs both --rpc-tracker HOST:PORT and --rpc-key KEY")
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise InputError(f"--rpc-tracker {address}: give it as HOST:PORT, such as 127.0.0.1:9190")
    return host.strip("[]"), int(port), key


def count_servers(tracker: tuple[str, int, str]) -> int:
    """Servers that a tracker has under a key.

    Raises
    ------
    InputError
        No tracker answers, or it has no such server.
    """
    host, port, key = tracker
    try:
        socket.create_connection((host, port), CONNECT_TIMEOUT_S).close()  # TVM itself tries for a minute
        servers = _session(tracker).summary()["server_info"]
    except (OSError, RuntimeError, ValueError, struct.error) as error:
        raise InputError(
            f"no RPC tracker answers at {host}:{port}: start one: "
            f"python -m tvm.exec.rpc_tracker --host {host} --port {port}"
        ) from error
    count = sum(server["key"].partition(":")[2] == key for server in servers)
    if not count:
        raise InputError(
            f"the RPC tracker at {host}:{port} has no server with the key {key!r}: start one: "
            f"python -m tvm.exec.rpc_server --tracker {host}:{port} --key {key}"
        )
    return count


@contextmanager
def remote_candidate(place: Place, library: str) -> Iterator[tuple[Any, Any]]:
    """A candidate loaded on a server of the fleet, and the device there, while this is entered."""
    assert place.tracker is not None
    session = _server(place.tracker)
    name = os.path.basename(library)
    try:
        session.upload(library)
        yield session.load_module(name), session.device(place.kind, 0)
    finally:
        with suppress(Exception):
            session.remove(name)


def remote_device(tracker: tuple[str, int, str], kind: str) -> tuple[str, str]:
    """Name and compute capability of the first server's device, such as ("NVIDIA H200", "9.0")."""
    device = _server(tracker).device(kind, 0)
    return str(device.device_name), str(device.compute_version)


def _session(tracker: tuple[str, int, str]) -> Any:
    from tvm import rpc

    return rpc.connect_tracker(*tracker[:2])


def _server(tracker: tuple[str, int, str]) -> Any:
    return _session(tracker).request(tracker[2], session_timeout=SESSION_TIMEOUT_S)
