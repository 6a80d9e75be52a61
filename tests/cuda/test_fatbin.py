"""The fat binary container against itself and against the toolkit's own tool."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvm_sparse.cuda.fatbin import Fatbin, find_fatbins, pack_fatbin
from tvm_sparse.cuda.paths import cuda_roots, find_nvcc

FATBINARY = next((root / "bin/fatbinary" for root in cuda_roots() if (root / "bin/fatbinary").exists()), None)


CUBINS = st.dictionaries(st.sampled_from(["sm_80", "sm_86", "sm_90"]), st.binary(max_size=99), min_size=1)


def _run(folder: Path, *command: str) -> str:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


@settings(deadline=None)
@given(CUBINS, st.integers(0, 9))
def test_a_packed_fatbin_is_found_with_its_archs(cubins, offset):
    packed = pack_fatbin(cubins)
    expected = Fatbin(offset, len(packed), tuple(sorted(int(arch[3:]) for arch in cubins)))
    assert find_fatbins(b"x" * offset + packed + b"tail") == [expected]


@settings(deadline=None)
@given(st.data())
def test_a_cut_fatbin_is_not_found(data):
    packed = pack_fatbin({"sm_80": b"abc", "sm_90": b"defg"})
    assert find_fatbins(packed[: data.draw(st.integers(0, len(packed) - 1))]) == []


def test_two_fatbins_are_both_found():
    one, other = pack_fatbin({"sm_80": b"one"}), pack_fatbin({"sm_90": b"two"})
    assert [found.sm_numbers for found in find_fatbins(one + b"between" + other)] == [(80,), (90,)]


def test_text_holds_no_fatbin():
    assert find_fatbins(b'extern "C" __global__ void kernel() {}') == []


@pytest.mark.skipif(FATBINARY is None or find_nvcc() is None, reason="no CUDA toolkit here")
def test_same_bytes_as_the_toolkits_own_tool(tmp_path):
    (tmp_path / "k.cu").write_text('extern "C" __global__ void k(float* a) { a[threadIdx.x] *= 2; }')
    cubins, images = {}, []
    for arch in ("sm_80", "sm_90"):
        _run(tmp_path, str(find_nvcc()), "-cubin", f"-arch={arch}", "-o", f"{arch}.cubin", "k.cu")
        cubins[arch] = (tmp_path / f"{arch}.cubin").read_bytes()
        images.append(f"--image3=kind=elf,sm={arch[3:]},file={arch}.cubin")
    _run(tmp_path, str(FATBINARY), "--create=k.fatbin", "--compress=false", *images)
    assert pack_fatbin(cubins) == (tmp_path / "k.fatbin").read_bytes()
