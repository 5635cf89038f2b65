"""The bits of the CPU kernel are those of the commit that ``bits/digests.json`` names.

Of a NaN only that it is one is compared: at that commit the baseline and the AVX2 unit differ in
signs and payloads of NaNs, because their compilers' choice of an operand's place differs.
"""

from __future__ import annotations

import json

import pytest

from bits import record
from conftest import ON_CPU, using

RECORDED = json.loads(record.DIGESTS.read_text())["digests"]


@pytest.mark.parametrize("triple", record.TRIPLES, ids="-".join)
@pytest.mark.parametrize("kernel", [b for b in ON_CPU if b.is_kernel], ids=lambda b: b.name)
def test_same_bits_as_recorded(kernel, triple):
    """Fails with the first case that differs, and with how many do."""
    with using(kernel):
        found = {(update, flags): d for _, update, flags, d in record.digests([triple])}
    recorded = RECORDED[", ".join(triple)]
    expected = {(update, flags): d for update in recorded for flags, d in recorded[update].items()}
    differing = [case for case in expected if found.get(case) != expected[case]]
    assert found.keys() == expected.keys()
    assert not differing, f"{len(differing)} of {len(expected)} differ, first {differing[0]}"


def test_no_power_depends_on_the_c_library():
    record.check_powers()
