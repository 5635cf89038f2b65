"""Gradient scaling, where one rank may overflow alone."""

from __future__ import annotations

import torch
import torch.distributed as dist

from proxadam import ProxAdam, ProxAdamW
from tools import BUSY, assert_same_bits, error_of

from .checks import EACH_PATH, check
from .engines import ENGINES, dtensor, gathered, mesh, set_gradients, whole


@check(**EACH_PATH)
def a_scaler_unscales_shards(path):
    """And where one rank alone has an overflow, every rank skips the step."""
    engine = ENGINES["fsdp2"]
    (model, optimizer), (twin, expected) = (engine(ProxAdamW, **BUSY, **path) for _ in range(2))
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for seed in range(3):
        set_gradients(twin, seed)
        set_gradients(model, seed)
        scaler.scale(torch.ones(()))  # makes the scale
        for param in model.parameters():
            param.grad *= 8
        overflows = seed == 1
        if overflows and dist.get_rank() == 1:
            model[1].weight.grad._local_tensor[0, 0] = torch.inf
        before, _ = gathered(model)
        scaler.step(optimizer)
        scaler.update(8.0)
        if not overflows:
            expected.step()
        after, grads = gathered(model)
        wanted, wanted_grads = gathered(twin)
        for i, (actual, param) in enumerate(zip(after, wanted, strict=True)):
            assert_same_bits(actual, param, f"parameter {i}")
            if overflows:
                assert_same_bits(actual, before[i])
            else:
                assert_same_bits(grads[i], wanted_grads[i], f"gradient {i}")
    steps = {state["step"].item() for state in optimizer.state.values()}
    assert steps == {2.0}


@check(kernel=())
def a_scaler_meets_summands():
    """They are not divided where they are; once the scaler has unscaled them, they are summed."""
    from torch.distributed.tensor import DTensor, Partial, Replicate

    params = [dtensor(Replicate()) for _ in range(2)]
    param, twin = params
    optimizer, expected = (ProxAdam([p], **BUSY, fused=True) for p in params)
    summand = twin.grad.to_local() / dist.get_world_size()
    param.grad = DTensor.from_local(8 * summand, mesh(), [Partial()])
    before = whole(param).clone()
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.ones(()))  # makes the scale
    kind, text = error_of(scaler.step, optimizer)
    assert kind is RuntimeError, text
    assert text.startswith("the gradient of parameter 0 of shape (6, 4) is a DTensor of"), text
    assert text.endswith("; call scaler.unscale_(optimizer) before the step."), text
    assert_same_bits(whole(param), before)
    optimizer = ProxAdam([param], **BUSY, fused=True)  # the scaler leaves its marks on the other
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    expected.step()
    assert_same_bits(whole(param), whole(twin))
