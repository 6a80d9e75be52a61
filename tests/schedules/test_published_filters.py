"""Filters that others pruned and published, layer by layer: empty rows, very long rows, columns shared by many rows."""

from __future__ import annotations

import pytest

from tests.cases import TOLERANCE, Case, reference
from tests.formats.test_every_format import published_filters
from tests.schedules.running import CPU, run_kernel
from tvm_sparse import oracle
from tvm_sparse.schedules import template
from tvm_sparse.workload import ConvWorkload, Epilogue

FILTERS = published_filters()
#: CaffeNet's split convolutions; the depthwise ones of MobileNet follow from their shape.
TWO_GROUPS = ("caffenet_a/conv2", "caffenet_a/conv4", "caffenet_a/conv5")


def workload_of(name: str) -> ConvWorkload:
    """A layer with this filter on a 13x11 image."""
    k, c_per_group, r, s = FILTERS[name].shape
    groups = 2 if name in TWO_GROUPS else k if "/dw" in name else 1
    stride = (4, 4) if r == 11 else (1, 1)
    padding = (r // 2, s // 2, r // 2, s // 2)
    epilogue = Epilogue(bias=True, activation="relu")
    return ConvWorkload(1, groups * c_per_group, 13, 11, k, r, s, stride, padding, groups=groups, epilogue=epilogue)


@pytest.mark.skipif(not FILTERS, reason="the published filters are not here")
@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("template_name", ["cpu_vector", "fallback"])
def test_published_filter(template_name, name):
    weight = FILTERS[name]
    case = Case(workload_of(name), 1.0, "", 1)
    built = template(template_name).kernel(case.workload, weight, CPU)
    y = run_kernel(built, case, CPU)
    assert oracle.relative_error(y, reference(case.workload, weight, case.inputs())) <= TOLERANCE["float32"]
