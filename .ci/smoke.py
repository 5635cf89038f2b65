"""What a wheel has to do in a fresh environment: train to exact zeros, and pass its self-test."""

from __future__ import annotations

import sys

import torch

import proxadam
from proxadam.__main__ import main
from proxadam.prox import soft_threshold

assert proxadam.available_backends()[0] in ("cpu", "cuda"), "the wheel has no kernel that runs here"

model = torch.nn.Linear(50, 20, bias=False)
inputs = torch.eye(50).repeat(2, 1) * 50**0.5  # so that each weight has its own quadratic
wanted = torch.randn(20, 50)
outputs = inputs @ wanted.T

optimizer = proxadam.ProxAdamW(proxadam.param_groups(model, l1=0.5, weight_decay=0), lr=0.05)
for _ in range(500):
    loss = (model(inputs) - outputs).square().sum(1).mean() / 2
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    optimizer.param_groups[0]["lr"] *= 0.99

zeros = model.weight.detach() == 0
expected = soft_threshold(wanted, 0.5) == 0
assert float(proxadam.sparsity(model)) > 0.2, "no weight is exactly zero"
assert (zeros == expected).float().mean() > 0.95, "other weights are zero than the objective says"
print(f"{int(zeros.sum())} of {zeros.numel()} weights are exactly zero")
sys.exit(main(["--self-test"]))
