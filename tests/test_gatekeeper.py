"""The native gatekeeper: why it turns a tensor away, and that no address outlives a look."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.nn import Parameter

from proxadam import ProxAdam, prox_adam
from tools import assert_same_bits, error_of, quantised, snapshot, weights

LISTS = ("params", "grads", "exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs", "state_steps")
SHAPE = (3, 4)


def group_of(count=1, **options):
    """What the native module reads of a group: healthy tensors, and options."""
    defaults = {
        "lr": 0.1, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0, "l1": 0.1,
        "l2": 0.0, "l21": 0.0, "l1_knee": 1.0, "max_shrink": 10.0, "euclidean": False,
        "keep_zeros": False,
        "amsgrad": True, "maximize": False, "decoupled_weight_decay": False, "allows_kernel": True,
        "stochastic_state": False, "stochastic_params": False, "seed": 0,
    }  # fmt: skip
    others = ("exp_avg_exponents", "exp_avg_sq_exponents", "numbers", "offsets")
    lists = {name: [torch.ones(SHAPE) for _ in range(count)] for name in LISTS[:-1]}
    lists["state_steps"] = [torch.tensor(0.0) for _ in range(count)]
    lists |= {name: [] for name in others}
    return SimpleNamespace(**lists, options=SimpleNamespace(**{**defaults, **options}))


def copies_of(group):
    return [t.clone() for name in LISTS for t in getattr(group, name)]


def assert_unwritten(group, before):
    for tensor, copy in zip(
        (t for name in LISTS for t in getattr(group, name)), before, strict=True
    ):
        assert_same_bits(tensor, copy)


# ---- reasons ----------------------------------------------------------------------------------


class Subclass(torch.Tensor):
    pass


def at_odd_address():
    """Float32 that begins one byte behind an aligned address, as in a file that is mapped."""
    flat = torch.zeros(4 * 13, dtype=torch.uint8).numpy()
    return torch.from_numpy(flat[1 : 1 + 4 * 12].view("float32")).view(SHAPE)


def freed():
    tensor = torch.ones(SHAPE)
    tensor.untyped_storage().resize_(0)
    return tensor


def made_in_inference_mode():
    with torch.inference_mode():
        return torch.ones(SHAPE)


def negated():
    return torch._neg_view(torch.ones(SHAPE))


SPOILT = {
    "subclass": [lambda: torch.ones(SHAPE).as_subclass(Subclass)],
    "no_view": [lambda: torch.ones(SHAPE).to_sparse(), quantised],
    "device": [lambda: torch.ones(SHAPE, device="meta")],
    "dtype": [lambda: torch.ones(SHAPE, dtype=torch.complex64), lambda: torch.ones(SHAPE).int()],
    "not_dense": [lambda: torch.ones(3, 8)[:, ::2], lambda: torch.ones(4).expand(3, 4)],
    "misaligned": [at_odd_address],
    "no_memory": [freed, lambda: torch._efficientzerotensor(SHAPE)],
    "negated": [negated],
    "inference": [made_in_inference_mode],
}
FOR_OTHERS = SPOILT | {
    "layout": [lambda: torch.ones(4, 3).t(), lambda: torch.ones(12), lambda: torch.ones(3, 5)],
    "dtype": [lambda: torch.ones(SHAPE, dtype=torch.float64)],
}
del FOR_OTHERS["not_dense"], FOR_OTHERS["inference"]
CASES = [
    *(("params", reason, make) for reason, makers in SPOILT.items() for make in makers),
    *(
        (name, reason, make)
        for name in LISTS[1:-1]
        for reason, makers in FOR_OTHERS.items()
        for make in makers
    ),
    *(
        ("state_steps", reason, make)
        for reason, make in {
            "step": lambda: torch.tensor(-1.0),
            "no_memory": lambda: torch._efficientzerotensor(()),
            "negated": lambda: torch._neg_view(torch.tensor(-1.0)),
            "subclass": lambda: torch.tensor(0.0).as_subclass(Subclass),
            "misaligned": lambda: at_odd_address()[0, 0],
        }.items()
    ),
    ("state_steps", "step", lambda: torch.tensor(float("nan"))),
    ("state_steps", "step", lambda: torch.zeros(2)),
    ("state_steps", "step", lambda: torch.tensor(0)),
]


@pytest.mark.parametrize(
    ("name", "reason", "make"),
    CASES,
    ids=[f"{name}-{reason}-{i}" for i, (name, reason, _) in enumerate(CASES)],
)
def test_a_tensor_is_turned_away_with_its_reason(kernel_module, name, reason, make):
    group = group_of(count=3)
    getattr(group, name)[1] = make()
    plan = kernel_module.admit([group_of(), group])
    found = [tuple(refusal) for refusal in plan.rejected]
    # DLPack may refuse to show a tensor for the very reason that we would give.
    assert found in ([(1, 1, reason, name)], [(1, 1, "no_view", name)])
    if reason not in ("device", "no_memory"):
        assert found == [(1, 1, reason, name)]


def test_shared_memory_is_the_reason_of_all_who_share(kernel_module):
    group = group_of(count=4)
    group.params[2] = group.params[0]
    plan = kernel_module.admit([group])
    assert plan.rejected == [(0, i, "shares_memory", "params") for i in (0, 2)]


@pytest.mark.parametrize(
    ("betas", "step", "fits"),
    [
        ((0.9, 0.999), 0, True),
        ((5.0, 0.999), 3, True),
        ((-1.0, 0.999), 0, True),
        ((-1.0, 0.999), 1, False),
        ((1.0, 0.999), 0, False),
        ((0.9, 1.0), 0, False),
        ((0.9, 4.0), 0, False),
        ((1e200, 0.999), 1, False),
        ((float("nan"), 0.999), 0, False),
    ],
)
def test_betas_without_a_bias_correction(kernel_module, betas, step, fits):
    group = group_of(beta1=betas[0], beta2=betas[1])
    group.state_steps[0].fill_(step)
    plan = kernel_module.admit([group], launch=False)
    assert plan.rejected == ([] if fits else [(0, 0, "betas", "state_steps")])


def test_lists_of_different_lengths(kernel_module):
    group = group_of()
    group.grads.append(torch.ones(SHAPE))
    assert error_of(kernel_module.admit, [group])[0] is ValueError


# ---- between the look and the write -----------------------------------------------------------


def resize(group):
    group.params[1].untyped_storage().resize_(0)


def repoint(group):
    group.grads[1].data = torch.ones(5)


def negative_step(group):
    group.state_steps[1].fill_(-3)


@pytest.mark.parametrize("change", [resize, repoint, negative_step])
def test_a_tensor_that_changes_under_a_plan_is_noticed_before_the_first_write(
    kernel_module, change
):
    """Also where it is in the second plan: all are looked at before the first one is launched."""
    first, second = group_of(count=2), group_of(count=2)
    plans = [kernel_module.admit([group], launch=False) for group in (first, second)]
    before = copies_of(first)
    change(second)
    kind, text = error_of(kernel_module.launch, plans)
    assert kind is RuntimeError
    assert "parameter 1 of group 0 was changed" in text
    assert_unwritten(first, before)


def test_a_plan_follows_memory_that_moves(kernel_module):
    group = group_of()
    plan = kernel_module.admit([group], launch=False)
    group.params[0].data = torch.full(SHAPE, 7.0)
    kernel_module.launch([plan])
    assert (group.params[0] < 7).all()
    assert group.state_steps[0] == 1


def test_a_plan_keeps_what_the_callers_lists_let_go(kernel_module):
    group = group_of(count=2)
    kept = [list(getattr(group, name)) for name in LISTS]
    plan = kernel_module.admit([group], launch=False)
    for name in LISTS:
        getattr(group, name).clear()
    kernel_module.launch([plan])
    assert all((param < 1).all() for param in kept[0])
    assert [step_t.item() for step_t in kept[-1]] == [1, 1]


def test_a_list_that_is_cleared_while_options_are_read(kernel_module):
    """Options may be objects whose truth is Python code; the lists are held after they are read."""
    group = group_of(count=2)

    class Clears:
        def __bool__(self):
            for name in LISTS:
                getattr(group, name).clear()
            return False

    group.options.maximize = Clears()
    assert kernel_module.admit([group]) is None


def test_no_override_runs_between_a_look_and_the_write(kernel_module):
    seen = []

    class Mode(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            seen.append(function)
            return function(*args, **(kwargs or {}))

    group = group_of()
    with Mode():
        assert kernel_module.admit([group]) is None
    assert seen == []


def test_a_subclass_that_repoints_another_parameter_while_it_is_looked_at():
    """The address that was seen first would be freed memory by the time of the write."""
    param = Parameter(torch.ones(2_000_000))
    param.grad = torch.ones(2_000_000)

    class Lazy(torch.Tensor):
        armed = False

        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            if Lazy.armed:
                Lazy.armed = False
                param.data = torch.full((2_000_000,), 3.0)
            return super().__torch_function__(function, types, args, kwargs or {})

    lazy = Parameter(torch.ones(3).as_subclass(Lazy))
    lazy.grad = torch.ones(3)
    optimizer = ProxAdam([param, lazy], lr=0.1)
    optimizer.step()
    Lazy.armed = True
    optimizer.step()
    assert not Lazy.armed
    assert torch.allclose(param, torch.tensor(2.9))


# ---- tensors that are not what they look like -------------------------------------------------


def test_a_gradient_without_memory():
    """As forward-mode AD hands out for zero."""
    (param,) = weights((5,))
    before = param.detach().clone()
    param.grad = torch._efficientzerotensor(5)
    ProxAdam([param]).step()
    assert_same_bits(param.detach(), before)


def leaked_from(transform, *shape):
    """A tensor that outlived the transform that wrapped it."""
    seen = []
    transform(lambda x: (seen.append(x), x.sum())[1])(torch.ones(*shape))
    return seen[0]


WRAPPED = {
    "functionalized": lambda: torch._to_functional_tensor(torch.ones(SHAPE)),
    "grad": lambda: leaked_from(torch.func.grad, SHAPE),
    "vmap": lambda: leaked_from(torch.vmap, (2, *SHAPE)),
    "nested": lambda: torch._nested_tensor_from_tensor_list([torch.ones(2), torch.ones(3)]),
    "mkldnn": lambda: torch.ones(SHAPE).to_mkldnn(),
    "csr": lambda: torch.ones(SHAPE).to_sparse_csr(),
}


@pytest.mark.filterwarnings("ignore:.*(prototype|beta) st:UserWarning")
@pytest.mark.parametrize("name", LISTS[:-1])
@pytest.mark.parametrize("kind", WRAPPED)
def test_what_only_wraps_memory_is_turned_away(kernel_module, kind, name):
    group = group_of()
    getattr(group, name)[0] = WRAPPED[kind]()
    plan = kernel_module.admit([group])
    assert plan.rejected in ([(0, 0, "no_view", name)], [(0, 0, "no_memory", name)])


@pytest.mark.parametrize("refused", [False, True], ids=["stepped", "refused"])
def test_a_gradient_that_is_a_lazy_clone_goes_on_sharing(kernel_module, refused):
    group = group_of(count=2)
    group.grads[0] = torch._lazy_clone(group.grads[1])
    if refused:
        group.params[0] = torch.ones(SHAPE).int()
    plan = kernel_module.admit([group])
    assert (plan is not None) == refused
    assert all(map(torch._C._is_cow_tensor, group.grads))


def test_a_lazy_clone_is_written_in_memory_of_its_own(kernel_module):
    group = group_of()
    shared = torch.ones(SHAPE)
    group.params[0] = torch._lazy_clone(shared)
    group.exp_avgs[0] = torch._lazy_clone(shared)
    group.grads[0] = torch._lazy_clone(shared)
    assert kernel_module.admit([group]) is None
    assert (group.params[0] < 1).all()
    assert_same_bits(shared, torch.ones(SHAPE))
    assert_same_bits(group.grads[0], torch.ones(SHAPE))


def test_a_lazy_clone_that_moves_takes_along_what_is_in_its_storage(kernel_module):
    group = group_of(count=2)
    whole = torch._lazy_clone(torch.ones(2, *SHAPE))  # shares with a tensor that is let go
    kept = torch._lazy_clone(whole)
    group.grads[0] = whole[0]
    group.exp_avgs[1] = whole[0]
    plan = kernel_module.admit([group])
    assert plan.rejected == [(0, i, "shares_memory", "params") for i in (0, 1)]
    assert_same_bits(kept, torch.ones(2, *SHAPE))


def test_functionalized_tensors():
    def step(param, grad, exp_avg, exp_avg_sq, step_t):
        prox_adam(
            [param], [grad], [exp_avg], [exp_avg_sq], [], [step_t], amsgrad=False, beta1=0.9,
            beta2=0.99, lr=0.1, weight_decay=0, eps=1e-8, maximize=False,
        )  # fmt: skip
        return param * 1

    zeros = torch.zeros(4)
    stepped = torch.func.functionalize(step)(
        torch.ones(4), torch.ones(4), zeros, zeros.clone(), torch.tensor(0.0)
    )
    assert torch.allclose(stepped, torch.tensor(0.9))


@pytest.mark.parametrize("name", ["exp_avg", "exp_avg_sq"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_lazily_negated_moment_is_the_number_it_stands_for(any_backend, name, dtype):
    def run(negates):
        torch.manual_seed(0)
        (param,) = weights((7,), dtype=dtype)
        optimizer = ProxAdam([param], lr=0.1, l1=0.01, **any_backend.options)
        optimizer.step()
        if negates:
            moment = optimizer.state[param][name]
            optimizer.state[param][name] = torch._neg_view(-moment)
        error = error_of(optimizer.step)
        return error, param.detach(), optimizer.state[param][name].resolve_neg()

    (_, *expected), (error, *actual) = run(False), run(True)
    if any_backend.is_kernel:
        assert error[0] is RuntimeError
        assert "negated" in error[1]
        return
    assert error is None
    torch.testing.assert_close(actual, expected, rtol=max(1e-6, torch.finfo(dtype).eps), atol=0)


def test_a_lazily_negated_step_is_refused_before_anything_is_written(any_backend):
    """Torch's loop counts it, its lists do not, after they have written."""
    first, second = weights((3,), (4,))
    optimizer = ProxAdam([first, second], **any_backend.options)
    optimizer.step()
    optimizer.state[second]["step"] = torch._neg_view(torch.tensor(-1.0))
    before = snapshot(optimizer)
    kind, text = error_of(optimizer.step)
    assert kind is RuntimeError
    assert "negated" in text
    assert_same_bits(snapshot(optimizer), before)
