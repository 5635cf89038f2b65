"""make_fx, fake tensors, modes that watch ops, and the transforms of torch.func."""

from __future__ import annotations

import collections

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode

from formats import BF16, CODED, NARROW, each_format
from proxadam import ProxAdam, prox_adam
from tools import assert_same_bits, error_of, params_of, snapshot, twin_of

OPTIONS = {
    "amsgrad": False, "beta1": 0.9, "beta2": 0.99, "lr": 0.1, "weight_decay": 0.01, "eps": 1e-8,
    "maximize": False, "l1": 0.02,
}  # fmt: skip
slow_in_place = pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")


def tensors(*shape):
    """A parameter, its gradient, both moments, and a step of 3."""
    torch.manual_seed(0)
    return *torch.randn(2, *shape), *torch.rand(2, *shape), torch.tensor(3.0)


def stepped(param, grad, exp_avg, exp_avg_sq, step_t, **options):
    """One step in place, and what was written."""
    lists = [[param], [grad], [exp_avg], [exp_avg_sq], [], [step_t]]
    prox_adam(*lists, **{**OPTIONS, **options})
    return param, exp_avg, exp_avg_sq, step_t


def without_grad(*given):
    with torch.no_grad():
        return stepped(*given)


class Watch(TorchDispatchMode):
    """Counts ops by name."""

    def __init__(self):
        super().__init__()
        self.counts = collections.Counter()

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        self.counts[op.name().partition(".")[0]] += 1
        return op(*args, **(kwargs or {}))


@pytest.mark.parametrize("tracing_mode", ["real", "fake", "symbolic"])
def test_make_fx_records_the_op(kernel_module, tracing_mode):  # noqa: ARG001
    graph = make_fx(without_grad, tracing_mode=tracing_mode)(*tensors(5))
    targets = [str(node.target) for node in graph.graph.nodes]
    assert targets.count("proxadam.step.default") == 1
    for actual, expected in zip(graph(*tensors(5)), without_grad(*tensors(5)), strict=True):
        assert_same_bits(actual, expected)


@each_format()
@pytest.mark.parametrize("options", [{}, {"foreach": False}], ids=["kernel", "loop"])
def test_a_mode_sees_the_step_and_leaves_its_bits(kernel_module, options, kept):  # noqa: ARG001
    watched = ProxAdam(kept.weights(), l1=0.01, **kept.options, **options)
    unwatched = twin_of(watched)
    for _ in range(2):
        with Watch() as watch:
            watched.step()
        unwatched.step()
    calls = 2 if kept.moments is torch.uint8 else 1  # with codes and without
    assert watch.counts["proxadam::step"] == (0 if options else calls)
    assert watch.counts["aten::addcdiv_"] == (3 if options else 0)
    assert_same_bits(snapshot(watched), snapshot(unwatched))


@each_format()
def test_fake_parameters_step_without_being_computed(kernel_module, kept):  # noqa: ARG001
    with FakeTensorMode():
        param = Parameter(torch.ones(70, 61, dtype=kept.dtype))
        param.grad = torch.ones_like(param)
        optimizer = ProxAdam([param], l1=0.01, **kept.options)
        optimizer.step()
    first = next(tensor for tensor in optimizer.state[param].values() if tensor.ndim)
    assert (first.shape, first.dtype) == (param.shape, kept.moments or param.dtype)


@each_format([BF16, CODED, *NARROW[-2:]])
def test_make_fx_records_an_optimizers_step(kernel_module, kept):  # noqa: ARG001
    """And the graph, run again, takes the step that an eager optimizer takes."""
    optimizer = ProxAdam(kept.weights(), l1=0.01, **kept.options)
    optimizer.step()
    eager = twin_of(optimizer)

    def step(*grads):
        for param, grad in zip(params_of(optimizer), grads, strict=True):
            param.grad = grad
        optimizer.step()
        return grads

    grads = [torch.randn_like(param) for param in params_of(optimizer)]
    graph = make_fx(step)(*grads)
    targets = [str(node.target) for node in graph.graph.nodes]
    assert targets.count("proxadam.step.default") == (2 if kept.moments is torch.uint8 else 1)
    graph(*grads)
    for _ in range(2):  # tracing has taken a step as well
        for param, grad in zip(params_of(eager), grads, strict=True):
            param.grad = grad
        eager.step()
    assert_same_bits(snapshot(optimizer), snapshot(eager))


@slow_in_place
def test_vmap_over_models():
    param, grad, exp_avg, exp_avg_sq, step_t = tensors(4, 5)
    expected = tensors(4, 5)
    each = [stepped(*(t[i] for t in expected[:-1]), torch.tensor(3.0)) for i in range(4)]
    batched = (param, grad, exp_avg, exp_avg_sq)
    torch.vmap(stepped, in_dims=(0, 0, 0, 0, None), out_dims=(0, 0, 0, None))(*batched, step_t)
    assert step_t == 4
    for i, (one, *_) in enumerate(each):
        torch.testing.assert_close(param[i], one)


@slow_in_place
def test_vmap_has_no_kernel_to_demand():
    def run(*given):
        return stepped(*given, fused=True)

    kind, text = error_of(torch.vmap(run, in_dims=(0, 0, 0, 0, None)), *tensors(4, 5))
    assert kind is RuntimeError
    assert text.startswith("`fused=True` needs the kernel for every parameter")


def test_gradients_through_a_step():
    param, grad, *moments, step_t = tensors(5)

    def total(grad):
        fresh = [tensor + 0 * grad for tensor in (param, *moments)]
        return stepped(fresh[0], grad, *fresh[1:], step_t.clone(), differentiable=True)[0].sum()

    actual = torch.func.grad(total)(grad)
    with_autograd = grad.clone().requires_grad_()
    total(with_autograd).backward()
    torch.testing.assert_close(actual, with_autograd.grad)
