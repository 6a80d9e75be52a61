"""A driver that is ended from outside leaves no compiler behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


def children(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_its_compilers_end_with_it(tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu_networks", "prepare", "--networks", "resnet50", "--batch", "1"]
    command += ["--log", "none", "--jobs", "1", "--libraries", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL) as driver:
        end = time.monotonic() + 60
        while not (compilers := children(driver.pid)) and time.monotonic() < end:
            time.sleep(0.2)
        assert compilers
        driver.send_signal(signal.SIGTERM)
        assert driver.wait(timeout=60) == 143
    end = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in compilers) and time.monotonic() < end:
        time.sleep(0.2)
    left = [pid for pid in compilers if Path(f"/proc/{pid}").exists()]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left
