"""Under torch.compile: the eager result, one graph, and no recompilation where tensors change."""

from __future__ import annotations

import re

import pytest
import torch
from torch import library, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor.utils import run_and_get_code

from formats import CODED, LIVELY, NARROW, SMALL, block_maxima, each_format
from proxadam import LinearL1, ProxAdam, ProxAdamW, is_built, prox_adam
from proxadam._step.options import NUMBERS, TYPES, Options
from proxadam._step.state import CODES, MOMENTS, moment
from tools import BUSY, assert_same_bits, error_of, params_of, snapshot, twin_of, weights

# What torch's compiler warns of by itself: its use of jit, the record_function around each step,
# which it leaves out, and its look at the .grad of every tensor that lives on over a graph break.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Profiler.*record_function.* will be ignored:UserWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]
needs_kernel = pytest.mark.skipif(not is_built("cpu"), reason="the op is the kernel's")

PATHS = {
    "default": {},
    "fused": {"fused": True},
    "foreach": {"foreach": True},
    "loop": {"fused": False, "foreach": False},
}
OPTIONS = {
    "plain": (ProxAdamW, {}),
    "busy": (ProxAdam, {**BUSY, "maximize": True}),
    "busy W": (ProxAdamW, BUSY),
    "knee": (ProxAdamW, {**BUSY, "l1_knee": 0.1, "keep_zeros": True}),
    "rows": (ProxAdamW, {**BUSY, "l21": 0.05}),
    "euclidean": (ProxAdamW, {**BUSY, "metric": "euclidean", "max_shrink": float("inf")}),
}
each_path = pytest.mark.parametrize(
    "path",
    [
        pytest.param(PATHS[name], id=name, marks=needs_kernel if name == "fused" else ())
        for name in PATHS
    ],
)
each_options = pytest.mark.parametrize(("cls", "options"), OPTIONS.values(), ids=OPTIONS.keys())


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()


def compiled(function, backend="aot_eager", fullgraph=True):
    """The function in one graph, and what counts its compilations."""
    counter = CompileCounterWithBackend(backend)
    return torch.compile(function, backend=counter, fullgraph=fullgraph), counter


def on_kernel(path):
    return is_built("cpu") and path.get("fused") is not False and "foreach" not in path


def assert_as_eager(optimizer, eager, path, atol=5e-6):
    """The same bits on the kernel, and on traced torch ops all but the bits.

    There 1 − β2^t is computed in float32, as with ``capturable``. In the first steps it has lost
    ten bits, which is 3e-5 of an Adam step, and no Adam step here is larger than 0.16.
    """
    actual, expected = snapshot(optimizer), snapshot(eager)
    if on_kernel(path):
        assert_same_bits(actual, expected)
        return
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        ulp = torch.finfo(tensor.dtype).eps
        close = {"rtol": 8 * ulp if ulp < 1e-6 else ulp, "atol": atol}
        torch.testing.assert_close(actual[name], tensor, **close)


def steps_of_both(optimizer, step, eager, count=4):
    for _ in range(count):
        for param, twin in zip(params_of(optimizer), params_of(eager), strict=True):
            if param.grad is not None:
                param.grad.copy_(torch.randn(param.shape))
                twin.grad.copy_(param.grad)
        step()
        eager.step()


# ---- the eager result -------------------------------------------------------------------------


@each_path
@each_options
def test_compiled_step_is_the_eager_one(cls, options, path):
    params = [*weights((7, 3), ()), *weights((33,), dtype=torch.bfloat16)]
    optimizer = cls(params, **options, **path)
    eager = twin_of(optimizer)
    step, counter = compiled(optimizer.step)
    steps_of_both(optimizer, step, eager)
    assert_as_eager(optimizer, eager, path)
    assert counter.frame_count == 1


def assert_close_as_kept(optimizer, eager):
    """As the eager step on torch ops, but for a unit in the last place of what is drawn.

    1 − β2^t is not the same number there, and what is rounded by chance may go the other way.
    """
    for param, twin in zip(params_of(optimizer), params_of(eager), strict=True):
        units = [(param, twin, max(2 * torch.finfo(param.dtype).eps, 1e-4))]
        own, expected = optimizer.state[param], eager.state[twin]
        assert own.keys() == expected.keys()
        assert own.get("number") == expected.get("number")
        unit = {torch.uint8: 0.125, torch.bfloat16: 2.0**-7, torch.float32: 1e-5}
        unit = unit[own[CODES[0] if CODES[0] in own else MOMENTS[0]].dtype]
        units += [(moment(own, name), moment(expected, name), 2 * unit) for name in MOMENTS]
        for actual, wanted, rtol in units:
            largest = block_maxima(wanted.float())
            torch.testing.assert_close(
                actual / (largest + 1e-30), wanted / (largest + 1e-30), rtol=rtol, atol=2.0**-13
            )


@pytest.mark.parametrize(
    ("kept", "path"),
    [
        pytest.param(kept, PATHS[name], id=f"{kept.name}-{name}")
        for name, some in {
            "default": [*SMALL, *NARROW],
            "loop": [*SMALL, NARROW[-1]],
            "foreach": [NARROW[-2]],
        }.items()
        for kept in some
    ],
)
def test_each_format_is_compiled_once(kept, path):
    """What the first step puts into the state, numbers among it, asks for no second graph."""
    optimizer = ProxAdamW(kept.weights(), **LIVELY, **kept.options, **path)
    eager = twin_of(optimizer)
    step, counter = compiled(optimizer.step)
    with torch._dynamo.config.patch(error_on_recompile=True):
        steps_of_both(optimizer, step, eager)
    assert counter.frame_count == 1
    if on_kernel(path):
        assert_same_bits(snapshot(optimizer), snapshot(eager))
    else:
        assert_close_as_kept(optimizer, eager)


@each_path
def test_inductor_gives_the_eager_result_in_place(path):
    """No buffer as large as a parameter: all writing is to the tensors themselves."""
    optimizer = ProxAdamW(weights((70, 30), (1031,)), **BUSY, **path)
    eager = twin_of(optimizer)
    step = torch.compile(optimizer.step, fullgraph=True)
    _, (code,) = run_and_get_code(step)
    eager.step()
    steps_of_both(optimizer, step, eager)
    assert_as_eager(optimizer, eager, path)
    assert ("torch.ops.proxadam.step.default" in code) == on_kernel(path)
    assert set(re.findall(r"empty_strided_cpu\((.*?\)),", code)) <= {"()"}


def test_a_large_tensor_is_one_loop_on_torch_ops():
    """Eager torch ops take it in blocks that fit the cache; traced, those compile for minutes."""
    nodes = []
    for numel in (10, 1 << 18):
        torch._dynamo.reset()
        step, counter = compiled(ProxAdamW(weights((numel,)), l1=1e-3, foreach=True).step, "eager")
        step()
        (graph,) = counter.graphs
        nodes.append(len(graph.graph.nodes))
    assert nodes[0] == nodes[1]


@each_path
def test_zeros_are_where_the_eager_step_has_them(path):
    optimizer = ProxAdamW(weights((64, 64)), lr=0.05, l1=0.5, **path)
    eager = twin_of(optimizer)
    step, _ = compiled(optimizer.step)
    steps_of_both(optimizer, step, eager, 8)
    (param,), (twin,) = params_of(optimizer), params_of(eager)
    assert 0.1 < (twin == 0).float().mean() < 0.9
    assert torch.equal(param == 0, twin == 0)
    assert not (param.signbit() & (param == 0)).any()


@each_path
def test_training_is_the_eager_one(path):
    """Forward, backward and step in one compiled function; only backward() breaks the graph."""

    def run(compile_it):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        optimizer = ProxAdamW(model.parameters(), lr=0.01, l1=1e-2, **path)
        batches = torch.randn(6, 32, 8)

        def train(batch):
            optimizer.zero_grad()
            loss = model(batch).square().mean()
            loss.backward()
            optimizer.step()
            return loss.detach()

        train = torch.compile(train, backend="aot_eager") if compile_it else train
        return optimizer, [train(batch).item() for batch in batches]

    (optimizer, losses), (eager, expected) = run(True), run(False)
    assert losses == pytest.approx(expected, rel=1e-4)
    assert_as_eager(optimizer, eager, path, atol=5e-5)  # gradients see the difference too


@each_path
def test_functional_training_step_is_one_graph(path):
    """With no Optimizer in it, at whose state dynamo breaks when a backward pass comes before."""
    options = {"amsgrad": True, "beta1": 0.9, "beta2": 0.999, "lr": 0.05, "weight_decay": 0.1}
    options |= {"eps": 1e-8, "maximize": False, "l1": 0.01, "l2": 0.02, **path}
    data, target = torch.randn(16, 5), torch.randn(16)

    def loss_of(param):
        return (data @ param - target).square().mean()

    def train(param, exp_avg, exp_avg_sq, max_exp_avg_sq, step_t):
        state = ([exp_avg], [exp_avg_sq], [max_exp_avg_sq], [step_t])
        prox_adam([param], [torch.func.grad(loss_of)(param)], *state, **options)

    def run(train):
        tensors = [torch.linspace(-1, 1, 5), *torch.zeros(3, 5).unbind(), torch.tensor(0.0)]
        tensors = [tensor.clone() for tensor in tensors]
        for _ in range(4):
            train(*tensors)
        return tensors

    step, counter = compiled(train)
    torch.testing.assert_close(run(step), run(train), rtol=1e-5, atol=3e-6)
    assert counter.frame_count == 1


@each_path
def test_parameters_without_gradient_are_left(path):
    params = weights((3,), (4,), (5,))
    params[1].grad = None
    optimizer = ProxAdamW(params, **BUSY, **path)
    eager = twin_of(optimizer)
    step, _ = compiled(optimizer.step)
    steps_of_both(optimizer, step, eager, 2)
    assert params[1] not in optimizer.state
    params_of(eager)[1].grad = params[1].grad = torch.ones(4)
    params_of(eager)[1].grad = torch.ones(4)
    steps_of_both(optimizer, step, eager, 2)
    assert_as_eager(optimizer, eager, path)
    assert [optimizer.state[p]["step"].item() for p in params] == [4, 2, 4]


@each_path
def test_eager_and_compiled_steps_take_turns(path):
    optimizer = ProxAdamW(weights((9,), (2, 3)), **BUSY, **path)
    eager = twin_of(optimizer)
    step, _ = compiled(optimizer.step)
    for take in (optimizer.step, step, step, optimizer.step, step):
        steps_of_both(optimizer, take, eager, 1)
    assert_as_eager(optimizer, eager, path)
    keys = [set(state) for state in optimizer.state.values()]
    assert keys == [set(state) for state in eager.state.values()]
    assert {state["step"].item() for state in optimizer.state.values()} == {5}
    loaded = twin_of(eager)
    loaded.load_state_dict(optimizer.state_dict())
    loaded.step()


def test_groups_of_all_kinds_in_one_step():
    """Two groups on the kernel, with options of their own, and one that forbids it."""
    groups = [
        {"params": weights((3,), (4,)), "l1": 0.1, "amsgrad": True},
        {"params": weights((5,)), "foreach": False, "l2": 0.3},
        {"params": weights((6,)), "metric": "euclidean", "maximize": True},
        {"params": []},
    ]
    optimizer = ProxAdam(groups, lr=0.05, l1=torch.tensor(0.01), weight_decay=0.1)
    eager = twin_of(optimizer)
    step, counter = compiled(optimizer.step)
    steps_of_both(optimizer, step, eager)
    assert_as_eager(optimizer, eager, {"foreach": "in part"})
    if is_built("cpu"):
        nodes = [node for node in counter.graphs[0].graph.nodes if "proxadam" in str(node.target)]
        assert len(nodes) == 2


# ---- recompilation ----------------------------------------------------------------------------


@each_path
def test_changed_tensors_do_not_recompile(path):
    changing = {"l1": torch.tensor(0.0), "l2": torch.tensor(0.0)}
    if not path.get("foreach"):  # it takes no others, as in torch.optim
        changing |= {"lr": torch.tensor(0.0), "betas": (torch.tensor(0.9), torch.tensor(0.999))}
    optimizer = ProxAdamW(weights((5,), (6,)), **changing, **path)
    eager = twin_of(optimizer)
    step, counter = compiled(optimizer.step)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for value in (0.0, 0.03, 0.02, 0.0):
            for group in (optimizer.param_groups[0], eager.param_groups[0]):
                for name in changing:
                    tensor = group["betas"][0] if name == "betas" else group[name]
                    tensor.fill_(0.9 - value if name == "betas" else value)
            steps_of_both(optimizer, step, eager, 1)
    assert counter.frame_count == 1
    assert_as_eager(optimizer, eager, path)


@each_path
def test_schedulers_that_fill_tensors_do_not_recompile(path):
    if path.get("foreach"):
        pytest.skip("foreach takes no tensor lr, as in torch.optim")

    def run(compile_it):
        torch.manual_seed(0)
        params = weights((5,), (6,))
        strengths = {"lr": torch.tensor(0.1), "l1": torch.tensor(0.02)}
        optimizer = ProxAdamW(params, **strengths, **path)
        schedulers = [
            torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=4),
            LinearL1(optimizer, total_iters=4),
        ]
        # torch wraps step for the scheduler, in a file that dynamo skips.
        step, counter = optimizer.step, None
        if compile_it:
            step, counter = compiled(step, fullgraph=False)
        for _ in range(6):
            step()
            for scheduler in schedulers:
                scheduler.step()
        return optimizer, counter

    (optimizer, counter), (eager, _) = run(True), run(False)
    assert counter.frame_count == 1
    assert_as_eager(optimizer, eager, path)


@needs_kernel
@each_format(SMALL)
def test_schedulers_compile_no_format_again(kept):
    def run(compile_it):
        torch.manual_seed(0)
        optimizer = ProxAdamW(kept.weights(), lr=torch.tensor(0.1), l1=0.02, **kept.options)
        scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=4)
        step, counter = optimizer.step, None
        if compile_it:
            step, counter = compiled(step, fullgraph=False)
        for _ in range(5):
            step()
            scheduler.step()
        return optimizer, counter

    (optimizer, counter), (eager, _) = run(True), run(False)
    assert counter.frame_count == 1
    assert_same_bits(snapshot(optimizer), snapshot(eager))


@pytest.mark.parametrize("path", [PATHS["default"], PATHS["loop"]], ids=["default", "loop"])
def test_a_changed_float_recompiles_once(path):
    """As with torch's AdamW: then the compiler has learned that the number changes."""
    optimizer = ProxAdamW(weights((5,), (6,)), l1=0.1, **path)
    step, counter = compiled(optimizer.step)
    for lr in (0.1, 0.2, 0.3, 0.4):
        optimizer.param_groups[0]["lr"] = lr
        step()
    assert counter.frame_count == 2


@each_path
def test_a_tensor_lr_of_zero_moves_nothing(path):
    """A warmup begins there, and a weight without any gradient yet has no denominator but eps."""
    lr = 0.0 if path.get("foreach") else torch.tensor(0.0)
    optimizer = ProxAdamW(weights((5,)), lr=lr, **path)
    (param,) = params_of(optimizer)
    before = param.detach().clone()
    param.grad.zero_()
    step, _ = compiled(optimizer.step)
    step()
    assert_same_bits(param, before)


# ---- the op -----------------------------------------------------------------------------------


def op_arguments(shapes, requires_grad=False, grad_scale=None, amsgrad=False, coded=False):
    """Tensors and options of a group; with amsgrad a tensor lr."""
    params = [torch.randn(shape, requires_grad=requires_grad) for shape in shapes]
    grads, exp_avgs = ([torch.randn(shape) for shape in shapes] for _ in range(2))
    exp_avg_sqs = [torch.rand(shape) for shape in shapes]
    maxima = [torch.rand(shape) for shape in shapes if amsgrad]
    steps = [torch.tensor(2.0) for _ in shapes]
    exponents: list[list[torch.Tensor]] = [[], []]
    if coded:
        exp_avgs, exp_avg_sqs = (
            [torch.randint(256, shape, dtype=torch.uint8) for shape in shapes] for _ in range(2)
        )
        exponents = [[torch.full((1,), 120, dtype=torch.uint8) for _ in shapes] for _ in range(2)]
    options = {"l1": 0.01, "amsgrad": amsgrad, "metric": "euclidean" if amsgrad else "adaptive"}
    plain = [name for name in NUMBERS if not (amsgrad and name == "lr")]
    values = vars_of(Options(**options))
    values |= {name: torch.tensor(values[name], dtype=torch.float64) for name in plain}
    values |= {"lr": torch.tensor(0.1)} if amsgrad else {}
    del values["state_dtype"]  # it goes by its name
    lists = (params, grads, exp_avgs, exp_avg_sqs, maxima, *exponents, steps)
    drawn = ([*range(len(shapes))], "8bit") if coded else ([], None)
    return (*lists, grad_scale, None, *drawn, plain, *values.values())


def vars_of(options):
    return {name: getattr(options, name) for name in TYPES}


@needs_kernel
@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(requires_grad):
    """Schema, fake implementation and functionalization, by torch's own test of an op."""
    shapes = [(3,), (2, 4), ()]
    for options in ({}, {"amsgrad": True}, {"coded": True}):
        plain = op_arguments(shapes, requires_grad, **options)
        library.opcheck(torch.ops.proxadam.step.default, plain)
        scaled = op_arguments(shapes, requires_grad, torch.tensor(2.0), **options)
        library.opcheck(torch.ops.proxadam.unscale_and_step.default, scaled)


@pytest.mark.parametrize("path", [PATHS["default"], PATHS["loop"]], ids=["default", "loop"])
@pytest.mark.parametrize(("grad_scale", "found_inf"), [(8.0, 0.0), (8.0, 1.0), (None, 1.0)])
def test_compiled_step_honours_the_scaler(path, grad_scale, found_inf):
    def run(compile_it):
        torch.manual_seed(0)
        optimizer = ProxAdamW(weights((9,), (2, 3)), **BUSY, **path)
        optimizer.grad_scale = None if grad_scale is None else torch.tensor(grad_scale)
        optimizer.found_inf = None if found_inf is None else torch.tensor(found_inf)
        (compiled(optimizer.step, fullgraph=False)[0] if compile_it else optimizer.step)()
        return optimizer

    optimizer, eager = run(True), run(False)
    assert_as_eager(optimizer, eager, path)
    for param, twin in zip(params_of(optimizer), params_of(eager), strict=True):
        assert_same_bits(param.grad, twin.grad)


@needs_kernel
@pytest.mark.parametrize("found_inf", [0.0, 1.0])
def test_a_compiled_step_on_codes_honours_the_scaler(found_inf):
    optimizer = ProxAdamW(CODED.weights(), **LIVELY, **CODED.options)
    optimizer.step()
    eager = twin_of(optimizer)
    before = snapshot(optimizer)
    for each in (optimizer, eager):
        each.grad_scale, each.found_inf = torch.tensor(8.0), torch.tensor(found_inf)
    step, _ = compiled(optimizer.step, fullgraph=False)
    steps_of_both(optimizer, step, eager, 2)
    assert_same_bits(snapshot(optimizer), before if found_inf else snapshot(eager))


@needs_kernel
def test_what_the_kernel_cannot_take_is_refused_or_left_to_torch_ops():
    def gaps():
        torch.manual_seed(0)
        params = [*weights((3,)), nn.Parameter(torch.randn(4, 2).t()[:, ::2])]
        for param in params:
            param.grad = torch.randn(param.shape)
        return params

    optimizer, eager = ProxAdamW(gaps(), **BUSY), ProxAdamW(gaps(), **BUSY)
    step, _ = compiled(optimizer.step)
    for take in (step, eager.step):
        take()
    assert_same_bits(snapshot(optimizer), snapshot(eager))

    demanding, eager = (ProxAdamW(gaps(), **BUSY, fused=True) for _ in range(2))
    before = [param.detach().clone() for param in params_of(demanding)]
    step, _ = compiled(demanding.step)
    assert error_of(step) == error_of(eager.step)
    for param, old in zip(params_of(demanding), before, strict=True):
        assert_same_bits(param, old)


def test_autograd_sees_the_compiled_step():
    """A weight saved for the backward pass and then stepped is an error, not a wrong gradient."""
    optimizer = ProxAdamW(weights((3,)))
    (param,) = params_of(optimizer)
    step, _ = compiled(optimizer.step, "inductor")
    loss = (param * param).sum()
    step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
