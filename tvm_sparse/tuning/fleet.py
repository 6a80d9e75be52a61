"""Candidates on other machines: TVM's tracker hands out its servers, one session a candidate.

A session can end because the candidate crashed or because its server did. Nobody can tell, so a candidate is tried on
another server before it is blamed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from tvm_sparse.errors import InputError
from tvm_sparse.tuning.candidates import Place

SESSION_TIMEOUT_S = 60
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
        count = _config(tracker).count_num_servers()
    except Exception as error:  # TVM's own kinds
        raise InputError(
            f"no RPC tracker answers at {host}:{port}: start one: "
            f"python -m tvm.exec.rpc_tracker --host {host} --port {port}"
        ) from error
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
    session = _config(place.tracker).connect_server()
    name = os.path.basename(library)
    try:
        session.upload(library)
        yield session.load_module(name), session.device(place.kind, 0)
    finally:
        with suppress(Exception):
            session.remove(name)


def remote_device(tracker: tuple[str, int, str], kind: str) -> tuple[str, str]:
    """Name and compute capability of the first server's device, such as ("NVIDIA H200", "9.0")."""
    device = _config(tracker).connect_server().device(kind, 0)
    return str(device.device_name), str(device.compute_version)


def _config(tracker: tuple[str, int, str]) -> Any:
    from tvm.s_tir.meta_schedule.runner import RPCConfig

    host, port, key = tracker
    return RPCConfig(host, port, key, session_timeout_sec=SESSION_TIMEOUT_S)
