"""What is the GPU's own: streams, captured graphs, several devices, and no waiting for any."""

from __future__ import annotations

import pytest
import torch
from torch.nn import Parameter

from proxadam import ProxAdam, backends
from tools import BUSY, LOOP, assert_same_bits, each_twin, error_of

pytestmark = pytest.mark.skipif(
    backends.kernel("cuda") is None, reason=str(backends.reason_for_fallback("cuda"))
)


def parameters(*sizes, device="cuda", seed=0):
    generator = torch.Generator().manual_seed(seed)
    params = [Parameter(torch.randn(n, generator=generator).to(device)) for n in sizes]
    for param in params:
        param.grad = torch.randn(param.numel(), generator=generator).to(device)
    return params


def results(optimizer):
    torch.cuda.synchronize()
    params = [p for group in optimizer.param_groups for p in group["params"]]
    return {
        f"{name} of {i}": t.detach().cpu()
        for i, p in enumerate(params)
        for name, t in {"param": p, **optimizer.state[p]}.items()
    }


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning")
@pytest.mark.parametrize("options", [{}, {"fused": True}, {"capturable": True}], ids=str)
def test_a_steady_step_waits_for_nothing(options):
    optimizer = ProxAdam(parameters(5, 70_001), **BUSY, **options)
    optimizer.step()
    scale, found_inf = torch.tensor(2.0, device="cuda"), torch.zeros((), device="cuda")
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode("error")
        for _ in range(3):
            optimizer.step()
        if options:
            optimizer.grad_scale, optimizer.found_inf = scale, found_inf
            optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(state["step"] == (5 if options else 4) for state in optimizer.state.values())


def test_the_step_runs_on_the_current_stream():
    """Behind a slow producer of the gradient, on a stream of its own."""
    plain, streamed = (ProxAdam(parameters(1 << 20), **BUSY) for _ in range(2))
    plain.step()
    plain.step()
    streamed.step()
    (param,) = streamed.param_groups[0]["params"]
    wanted, param.grad = param.grad, torch.zeros_like(param)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        param.grad.copy_(wanted)
        streamed.step()
    assert_same_bits(results(streamed), results(plain))


def test_a_captured_step_replays_while_lr_and_l1_change():
    schedule = [(0.05, 0.01), (0.02, 0.3), (0.0, 0.3), (0.1, 0.0)]
    lr, l1 = (torch.tensor(x, device="cuda") for x in schedule[0])
    options = {**BUSY, "capturable": True}
    captured = ProxAdam(parameters(5, 70_001), **{**options, "lr": lr, "l1": l1})
    eager = ProxAdam(parameters(5, 70_001), **options)
    captured.step()
    eager.step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured.step()
    for new_lr, new_l1 in schedule:
        lr.fill_(new_lr)
        l1.fill_(new_l1)
        graph.replay()
        eager.param_groups[0].update(lr=torch.tensor(new_lr, device="cuda"))
        eager.param_groups[0].update(l1=torch.tensor(new_l1, device="cuda"))
        eager.step()
        assert_same_bits(results(captured), results(eager))


def test_the_very_first_step_may_be_captured():
    """Kernels are loaded when the optimizer is built: in a capture it would be too late."""
    optimizer = ProxAdam(parameters(1000), **BUSY, capturable=True)
    optimizer._init_group(optimizer.param_groups[0], *([] for _ in range(6)))  # makes the state
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    graph.replay()
    expected = ProxAdam(parameters(1000), **BUSY, capturable=True)
    expected.step()
    actual = results(optimizer)
    for name, tensor in results(expected).items():
        if "max" not in name:  # made in the capture, of zeros
            assert_same_bits(actual[name], tensor, name)


@each_twin
@pytest.mark.parametrize("path", [LOOP, {"foreach": True}, {"fused": True}, {}])
@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty:UserWarning")  # so it should be
def test_capturing_without_capturable_is_torchs_error(ours, theirs, path):
    texts = []
    for cls in (ours, theirs):
        optimizer = cls(parameters(5), **path)
        optimizer.step()
        torch.cuda.synchronize()
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            kind, text = error_of(optimizer.step)
        assert kind is RuntimeError
        texts.append(text.replace(cls.__name__, theirs.__name__))
    assert texts[0] == texts[1]
    assert "capturable is False" in texts[0]


def test_the_host_and_the_device_in_one_optimizer():
    both = ProxAdam(parameters(100, 200) + parameters(100, 200, device="cpu"), **BUSY)
    for _ in range(3):
        both.step()
    params = both.param_groups[0]["params"]
    for on_device, on_host in zip(params[:2], params[2:], strict=True):
        assert_same_bits(on_device.detach().cpu(), on_host.detach())
        assert both.state[on_device]["step"] == both.state[on_host]["step"] == 3


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_two_gpus_in_one_optimizer():
    params = parameters(100, device="cuda:0") + parameters(100, device="cuda:1")
    optimizer = ProxAdam(params, **BUSY, fused=True)
    with torch.cuda.device(1):
        optimizer.grad_scale = torch.tensor(1.0, device="cuda:0")
        optimizer.found_inf = torch.tensor(0.0, device="cuda:0")
        optimizer.step()
        assert torch.cuda.current_device() == 1
    assert_same_bits(params[0].detach().cpu(), params[1].detach().cpu())
