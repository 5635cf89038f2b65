"""What torch's own tests ask of every optimizer in its list, asked of ours on every backend.

The options to try, the errors to raise, the schedulers and the flags that a checkpoint may lack
are torch's data; see optim_db.py. Of state dicts, test_conformance_state.py.
"""

from __future__ import annotations

import pytest
import torch
from torch.nn import Parameter
from torch.optim.lr_scheduler import ReduceLROnPlateau

from conftest import Backend
from optim_db import OPTIM_DB, cases, each_info, inputs
from proxadam import ProxAdam
from storages import each_dtype
from tools import (
    LOOP,
    TWINS,
    assert_same_bits,
    error_of,
    needs_cuda,
    regression,
    snapshot,
    weights,
)

each_torch_path = pytest.mark.parametrize(
    "path", [LOOP, {"foreach": True}, {}], ids=["loop", "foreach", "default"]
)


# ---- options and errors -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
# What torch tries on CUDA adds capturable, which torch's own paths refuse on the CPU.
@pytest.mark.parametrize(("ours", "theirs", "case"), cases("optim_inputs_func", "cpu", "cuda"))
def test_inputs_step_as_torch(ours, theirs, case, dtype, backend):
    def run(cls, **options):
        torch.manual_seed(0)
        weights = [Parameter(torch.randn(shape, dtype=dtype)) for shape in [(7, 3), (5,), ()]]
        optimizer = cls(weights, **{**case.kwargs, **options})
        for _ in range(3):
            for weight in weights:
                weight.grad = torch.randn_like(weight)
            optimizer.step()
        return weights

    if backend.is_kernel:
        expected = run(theirs, foreach=False, capturable=False)
        torch.testing.assert_close(run(ours, **backend.options), expected)
        return
    error = error_of(run, theirs, **backend.options)
    assert error_of(run, ours, **backend.options) == error
    if not error:
        both = zip(run(ours, **backend.options), run(theirs, **backend.options), strict=True)
        assert all(torch.equal(a, b) for a, b in both)


@pytest.mark.parametrize("path", [{}, LOOP, {"foreach": True}, {"fused": True}])
@pytest.mark.parametrize(
    ("ours", "theirs", "case"),
    cases("optim_error_inputs_func", "cpu", *["cuda"] * torch.cuda.is_available()),
)
def test_error_inputs_raise_as_torch(ours, theirs, case, path):
    bad = case.optimizer_error_input
    params = [Parameter(torch.ones(1))] if bad.params is None else bad.params
    options = {**path, **bad.kwargs}
    error = error_of(theirs, params, **options)
    assert error_of(ours, params, **options) == error
    if not path:
        assert error[0] is case.error_type


@each_info
@each_dtype
def test_paths_are_as_near_to_torchs_as_torch_asks_of_its_own(info, backend, dtype):
    """In 16 bits to its fused path: its loop rounds at every operation, and ours once, as that.

    Of seven steps three go without the first parameter's gradient.
    """
    theirs = dict(TWINS.values())[info.optim_cls]
    close = {"atol": 5e-3, "rtol": 5e-3} if dtype.itemsize == 2 else {}
    for options in inputs(info, backend, dtype):
        runs = []
        as_exact = {"fused": dtype.itemsize == 2, "foreach": False, "capturable": False}
        for cls, path in ((info.optim_cls, {}), (theirs, as_exact)):
            torch.manual_seed(0)
            params = weights((8, 3), (5, 5), dtype=dtype)
            optimizer = cls(params, **{**options, **path})
            for i in range(7):
                for param in params:
                    param.grad = torch.rand_like(param)
                if 3 <= i < 6:
                    params[0].grad = None
                optimizer.step()
            runs.append(snapshot(optimizer))
        torch.testing.assert_close(*runs, **close, check_dtype=False)
        assert runs[0]["step of 0"] == 4


# ---- where a step leads -----------------------------------------------------------------------


@pytest.mark.parametrize("contiguous", [True, False], ids=["whole", "with gaps"])
@pytest.mark.parametrize(
    ("info", "schedulers"),
    [
        pytest.param(info, schedulers, id=f"{info.name}-{i}")
        for info in OPTIM_DB.values()
        for i, schedulers in enumerate(info.scheduler_inputs)
    ],
)
def test_steps_go_in_the_right_direction(info, any_backend, schedulers, contiguous):
    """In two groups, with each of the schedulers that torch tries."""
    backend = any_backend
    if backend.is_kernel and not contiguous:
        backend = Backend("auto", device=backend.device)  # fused=True refuses it: test_layout.py
    for options in inputs(info, backend):
        weight, bias, loss = regression(contiguous)
        first = loss().item()
        groups = [{"params": [weight]}, {"params": [bias], "lr": 0.01}]
        optimizer = info.optim_cls(groups, **options)
        made = [make(optimizer) for make in schedulers]
        for _ in range(20):
            value = optimizer.step(loss)
            for scheduler in made:
                scheduler.step(*[value.detach()] * isinstance(scheduler, ReduceLROnPlateau))
        grown = loss().item() > first
        assert grown is bool(options.get("maximize"))


@each_info
def test_lr_of_a_group_counts_for_it_alone(info, backend):
    """A group at lr = 1e-28 rests; the lr that is given to all is not used where each has one."""
    for options in inputs(info, backend):
        rests, moves = weights((10, 5), (10,))
        lrs = [1e-28, 0.01]
        if isinstance(options.get("lr"), torch.Tensor):
            lrs = [torch.full_like(options["lr"], lr) for lr in lrs]
        groups = [{"params": [p], "lr": lr} for p, lr in zip((rests, moves), lrs, strict=True)]
        before = [p.detach().clone() for p in (rests, moves)]
        optimizer = info.optim_cls(groups, **options)
        for _ in range(3):
            optimizer.step()
        assert_same_bits(rests, before[0])
        assert (moves != before[1]).all()


@each_info
def test_weight_decay_of_a_group_counts_for_it_alone(info, backend):
    for options in inputs(info, backend):
        decays, rests = weights((10, 5), (10,))
        before = [p.detach().clone() for p in (decays, rests)]
        groups = [{"params": [decays], "weight_decay": 0.1}, {"params": [rests]}]
        optimizer = info.optim_cls(groups, **{**options, "weight_decay": 0.0})
        for param in (decays, rests):
            param.grad = torch.zeros_like(param)
        optimizer.step()
        assert (decays.abs() < before[0].abs()).all()
        assert_same_bits(rests, before[1])


@each_info
@pytest.mark.parametrize("shape", [(), (1,)], ids=["0-d", "1-d"])
def test_a_tensor_lr_is_the_number_in_it(info, backend, shape):
    for options in inputs(info, backend):
        if options.get("foreach") and not options.get("capturable"):
            continue  # refused, as in torch
        runs = []
        for lr in (0.015625, torch.full(shape, 0.015625)):
            torch.manual_seed(0)
            optimizer = info.optim_cls(weights((5, 3)), **{**options, "lr": lr})
            for _ in range(3):
                optimizer.step()
            runs.append(snapshot(optimizer))
        torch.testing.assert_close(*runs)


@each_info
def test_zero_gradients_move_what_decays_alone(info, backend):
    for options in inputs(info, backend):
        (param,) = weights((5,))
        param.grad.zero_()
        before = param.detach().clone()
        optimizer = info.optim_cls([param], **options)
        for _ in range(3):
            optimizer.step()
        assert torch.equal(param, before) is (optimizer.param_groups[0]["weight_decay"] == 0)


@each_info
def test_no_gradient_is_no_step(info, backend):
    for options in inputs(info, backend):
        params = weights((5,), (5,))
        before = [p.detach().clone() for p in params]
        for param in params:
            param.grad = None
        optimizer = info.optim_cls(params, **options)
        optimizer.step()
        assert_same_bits(dict(enumerate(params)), dict(enumerate(before)))
        assert not optimizer.state


# ---- complex numbers, dtypes, devices ---------------------------------------------------------


@each_info
@each_torch_path
@pytest.mark.parametrize("view", ["view_as_real", "real and imag"])
def test_a_complex_parameter_steps_as_its_two_parts(info, path, view):
    for case in info.optim_inputs_func("cpu"):
        torch.manual_seed(0)
        whole = Parameter(torch.randn(5, 5, dtype=torch.complex64))

        def parts(z):
            return [torch.view_as_real(z)] if view == "view_as_real" else [z.real, z.imag]

        params = [Parameter(part.detach().clone()) for part in parts(whole)]
        both = [info.optim_cls(ps, **case.kwargs, **path) for ps in ([whole], params)]
        for _ in range(3):
            whole.grad = torch.randn_like(whole)
            for param, grad in zip(params, parts(whole.grad), strict=True):
                param.grad = grad.clone()
            for optimizer in both:
                optimizer.step()
            torch.testing.assert_close(parts(whole.detach()), [p.detach() for p in params])


@needs_cuda
@each_info
@pytest.mark.parametrize("path", [LOOP, {"foreach": True}, {}, {"fused": True}])
def test_devices_and_dtypes_may_be_mixed_in_a_group(info, path):
    kinds = [(d, t) for d in ("cpu", "cuda") for t in (torch.float32, torch.float64)]
    for case in info.optim_inputs_func("cpu"):
        mixed = [weights((4, 3), dtype=dtype)[0].to(device) for device, dtype in kinds]
        mixed = [Parameter(p.detach()) for p in mixed]
        alone = [Parameter(p.detach().cpu().clone()) for p in mixed]
        both = [info.optim_cls(ps, **case.kwargs, **o) for ps, o in ((mixed, path), (alone, LOOP))]
        for _ in range(3):
            for param, twin in zip(mixed, alone, strict=True):
                twin.grad = torch.randn_like(twin)
                param.grad = twin.grad.to(param.device)
            for optimizer in both:
                optimizer.step()
        torch.testing.assert_close([p.cpu() for p in mixed], alone)


@each_info
def test_the_default_dtype_is_that_of_the_step(info, backend):
    """torch counts in float64 where that is the default, unless the kernel counts."""
    theirs = dict(TWINS.values())[info.optim_cls]
    torch.set_default_dtype(torch.float64)
    try:
        dtypes = set()
        for cls in (info.optim_cls, theirs):
            (param,) = weights((5,), dtype=torch.float64)
            optimizer = cls([param], **backend.options)
            optimizer.step()
            dtypes.add(optimizer.state[param]["step"].dtype)
    finally:
        torch.set_default_dtype(torch.float32)
    assert dtypes == {torch.float32 if backend.is_kernel else torch.float64}


@needs_cuda
@pytest.mark.parametrize("path", [LOOP, {"foreach": True}, {"fused": True}])
def test_a_step_needs_no_more_memory_than_torchs(path):
    peaks = []
    for cls in (torch.optim.AdamW, OPTIM_DB["AdamW"].optim_cls):
        params = [Parameter(torch.randn(1 << 18, device="cuda")) for _ in range(8)]
        for param in params:
            param.grad = torch.randn_like(param)
        optimizer = cls(params, **path)
        optimizer.step()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        optimizer.step()
        torch.cuda.synchronize()
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[1] <= peaks[0]


def test_the_list_has_our_classes_with_torchs_data():
    assert [info.name for info in OPTIM_DB.values()] == ["ProxAdam", "ProxAdamW"]
    assert OPTIM_DB["Adam"].optim_cls is ProxAdam
    for info in OPTIM_DB.values():
        assert len(info.optim_inputs_func("cpu")) >= 5
        assert "fused" in info.not_og_supported_flags
