"""Second moments of few bits follow the gradients as float32's do, for as long as one likes."""

from __future__ import annotations

import pytest
import torch

from proxadam import ProxAdam, available_backends, to_adam_state_dict

pytestmark = pytest.mark.skipif(
    "cpu" not in available_backends(), reason="a hundred thousand steps want the kernel"
)

STEPS = 50_000  # of each scale, 10⁵ in all; beta2 = .999 remembers a thousand
BLOCK = 500
FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16, "8bit": "8bit"}
SCALES = (1.0, 0.1)  # of the gradients, one after the other


@pytest.fixture(scope="module")
def roots():
    """√v of each format, of fp32's, behind the steps of each scale; all see the same gradients.

    "nearest" is bf16 without chance.
    """
    params = {name: torch.nn.Parameter(torch.ones(64, 64)) for name in FORMATS}
    groups = [{"params": params[name], "state_dtype": kept} for name, kept in FORMATS.items()]
    optimizer = ProxAdam(groups, lr=1e-9, fused=True)
    nearest = torch.zeros(64, 64, dtype=torch.bfloat16)
    generator = torch.Generator().manual_seed(0)
    found = []
    for scale in SCALES:
        for _ in range(STEPS // BLOCK):
            for grad in scale * torch.randn(BLOCK, 64, 64, generator=generator):
                for param in params.values():
                    param.grad = grad
                optimizer.step()
                nearest = nearest.float().lerp_(grad.square(), 1e-3).bfloat16()
        saved = to_adam_state_dict(optimizer)["state"]
        v = {name: saved[i]["exp_avg_sq"].float() for i, name in enumerate(FORMATS)}
        v["nearest"] = nearest.float()
        found.append({name: (own / v["fp32"]).sqrt().mean().item() for name, own in v.items()})
    return found


@pytest.mark.parametrize(("name", "most"), [("bf16", 0.02), ("8bit", 0.03)])
def test_the_denominator_is_right_in_the_mean(name, most, roots):
    steady, fallen = (found[name] for found in roots)
    assert steady == pytest.approx(1, abs=most)
    assert fallen == pytest.approx(1, abs=most), "the gradients have fallen, and v has not"


def test_rounded_to_nearest_it_is_not(roots):
    # A thousandth of v is less than half of its last place: it grows, and does not decay.
    steady, fallen = (found["nearest"] for found in roots)
    assert steady > 1.3
    assert fallen > 10
