"""ProxAdam and ProxAdamW: torch.optim.Adam and AdamW whose weights can become exactly zero."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from itertools import repeat
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from . import backends
from ._step import dispatch, loading, lock, state
from ._step.checks import check_dense, check_not_flat
from ._step.group import Group
from ._step.options import (
    Options,
    arguments_of,
    check_arguments,
    check_group,
    group_defaults,
)

__all__ = ["ProxAdam", "ProxAdamW"]

# Raises torch's error while a graph is captured with capturable=False. torch < 2.11 has the second.
_check_graph_capture = getattr(
    Optimizer, "_accelerator_graph_capture_health_check", None
) or getattr(Optimizer, "_cuda_graph_capture_health_check")  # noqa: B009


def _in_its_grad_mode(step: Callable[..., Any]) -> Callable[..., Any]:
    """Run a step under no_grad, or with autograd if it is differentiable.

    What torch's own decorator does, without the graph breaks around the step that it asks
    torch.compile for: they would forbid ``fullgraph=True``.
    """

    @functools.wraps(step)
    def wrapper(self: Optimizer, closure: Callable[[], Any] | None = None) -> Any:
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            return step(self, closure)

    return wrapper


class ProxAdam(Optimizer):
    r"""Adam with an elastic-net proximal step: a drop-in for :class:`torch.optim.Adam`.

    Minimises ``loss(w) + l1 · Σ|w| + (l2 / 2) · Σ w²``, and ``l21 · Σ √n ‖row‖₂`` if asked to. Each
    step takes Adam's result z, with Adam's own denominator d = √(v̂) + eps, and then, where l1 or
    l2 is not zero,

    .. math::
        \tau = lr \cdot l1 / d, \quad \sigma = lr \cdot l2 / d, \quad
        y = (z - \mathrm{clamp}(z, -\tau, \tau)) / (1 + \sigma), \quad
        w = \min(\max(y,\; z - C),\; z + C), \quad C = max\_shrink \cdot lr.

    A weight at zero stays there exactly while |m̂| ≤ l1, and comes back by itself otherwise. The
    metric is that of Yun, Lozano and Yang, *Adaptive proximal gradient methods* (2021), formula
    (2); with l1 = l2 = 0 the optimizer is torch's Adam.

    Args:
        params: iterable of parameters, of named parameters, or of dicts that define groups.
        lr: learning rate; a float or a one-element tensor. (default: 1e-3)
        betas: decay of the two moments; both floats or both one-element tensors.
            (default: (0.9, 0.999))
        eps: term added to the denominator. (default: 1e-8)
        weight_decay: decay coefficient; added to the gradient, or taken from the weights if
            ``decoupled_weight_decay``. (default: 0)
        amsgrad: use the running maximum of the second moment. (default: False)
        l1: weight of Σ|w|, finite and ≥ 0, in the units of the gradient; a float or a one-element
            tensor. (default: 0)
        l2: weight of ½ Σ w², finite and ≥ 0. (default: 0)
        l21: weight of Σ √n · ‖row‖₂ over the rows of parameters of at least two dimensions, finite
            and ≥ 0, in the units of l1. A row is what belongs to one index of the first dimension,
            n elements: the weights into one neuron of Linear, or one channel of Conv. It makes
            whole rows exactly zero, see :func:`proxadam.prox_group`; a dead row stays dead while
            ‖S(m̂, l1)‖₂ ≤ l21 · √n, with S the soft threshold. Real parameters alone. Where the
            shards of a DTensor cut rows, torch ops add up over them: all ranks need a gradient
            then. FSDP1's flat parameters have no rows, and are refused. (default: 0)
        l1_knee: where the pull of l1 has halved, above 0, in the units of the weights: the penalty
            is then l1 · knee · Σ log(1 + |w| / knee), and each step takes l1 / (1 + |w| / knee)
            for l1, with w the weight before it (Candès, Wakin and Boyd, *Enhancing sparsity by
            reweighted l1 minimization*, 2008). It spares large weights. inf is plain L1.
            (default: inf)
        metric: "adaptive" gives each coordinate its own threshold lr · l1 / d, and then the
            solutions are those of the objective above; "euclidean" gives all the same lr · l1,
            which does not depend on the scale of the loss. (default: "adaptive")
        max_shrink: how far the prox may pull a weight in one step, in units of lr; ≥ 1, inf for
            no bound. It protects weights that have had almost no gradient. (default: 10)
        state_dtype: how the moments are kept. None is the parameter's dtype, as torch does;
            torch.float32 is that also beside bfloat16 and float16 parameters. torch.bfloat16 takes
            2 bytes a moment and "8bit" 1.004; both are rounded by chance, so that they are right in
            the mean. "8bit" is for parameters of at least 4096 elements and two dimensions, and
            keeps the others in float32. It is torch.bfloat16, with one warning, for parameters that
            do not lie in the order of their dimensions, such as channels_last, and for shards that
            would cut its blocks of 256. It does not go with amsgrad, nor either of the two with
            differentiable. float64 and complex parameters keep their own dtype; "8bit" refuses
            them. (default: None)
        stochastic_rounding: round bfloat16 and float16 parameters by chance: updates that are
            smaller than half a unit in the last place then count in the mean, and zeros stay zeros.
            None does so where ``state_dtype`` is torch.bfloat16 or "8bit". (default: None)
        seed: of what is drawn by chance, from 0 to 2**63 − 1. The same seed gives the same bits,
            whatever the number of threads; torch's generators are not touched. (default: 0)
        keep_zeros: a weight that is zero before the step is +0.0 behind it, whatever its gradient;
            its moments go on. Weights that begin at zero, as one half of a LoRA pair does, then
            never start. (default: False)
        decoupled_weight_decay: AdamW's decay in place of Adam's. (default: False)
        maximize: ascend the loss; the prox still shrinks. (default: False)
        foreach: torch ops on lists of tensors (True) or tensor by tensor (False); either forbids
            the kernel. None chooses. (default: None)
        capturable: keep the step on the device, for CUDA graphs. (default: False)
        differentiable: let autograd through the step; torch ops. (default: False)
        fused: None takes the kernel for every tensor it fits and torch ops for the others; True
            demands it; False forbids it. (default: None)

    Raises:
        ValueError: an argument out of range; the message names it and its value.
        RuntimeError: ``fused`` together with ``foreach`` or ``differentiable``; ``fused=True``
            where no kernel is; and, in :meth:`step`, sparse gradients or tensors that do not fit
            one another, before anything is written.
        AssertionError: in :meth:`step`, ``capturable=True`` for tensors that cannot be captured.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        l1: float | Tensor = 0.0,
        l2: float | Tensor = 0.0,
        l21: float | Tensor = 0.0,
        l1_knee: float | Tensor = math.inf,
        metric: str = "adaptive",
        max_shrink: float = 10.0,
        state_dtype: torch.dtype | str | None = None,
        stochastic_rounding: bool | None = None,
        seed: int = 0,
        keep_zeros: bool = False,
        decoupled_weight_decay: bool = False,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        defaults = arguments_of(locals())
        del defaults["params"]
        check_arguments(**defaults)
        beta1, beta2 = (b.squeeze() if isinstance(b, Tensor) else b for b in betas)
        super().__init__(params, defaults | {"betas": (beta1, beta2)})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its own options beyond Adam's are held to the same ranges."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            check_group(group)
            state.check_format(group)
            if Options.of(group).has_rows:
                check_not_flat(group["params"])
            _load_kernels(group)
        except Exception:
            self.param_groups.pop()
            raise

    @torch._disable_dynamo
    def state_dict(self) -> dict[str, Any]:
        """As torch's, with dtypes among the options by their names.

        ``full_state_dict=True`` of torch.distributed.checkpoint takes no dtype, and what is loaded
        keeps the ``state_dtype`` of the optimizer.
        """
        saved = super().state_dict()
        groups = [
            {k: str(v) if isinstance(v, torch.dtype) else v for k, v in group.items()}
            for group in saved["param_groups"]
        ]
        return {**saved, "param_groups": groups}

    @torch._disable_dynamo
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` returned, of this class or of torch.optim's Adam or AdamW.

        Unlike torch's, it keeps float32 moments in float32 where ``state_dtype`` says so, leaves
        ``foreach``, ``fused``, ``capturable`` and ``differentiable`` as this instance has them, and
        where the saved groups lack an option, that too.

        Raises:
            ValueError: no step could be taken from it: groups, tensors or counts that do not fit,
                betas without a bias correction, another option out of the constructor's range;
                nothing is changed then.
        """
        if not isinstance(state_dict, Mapping):
            raise ValueError(f"expected a state dict, got {type(state_dict)}")
        states: dict[Tensor, dict[str, Tensor]] = {}

        def before(optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
            whole, prepared = loading.prepared(optimizer, state_dict)
            states.update(prepared)
            return whole

        def after(optimizer: Optimizer) -> None:
            for param, own in states.items():
                optimizer.state[param].update(own)

        # Behind the user's hooks that may change what is loaded, before those that look at it.
        hooks = (
            self.register_load_state_dict_pre_hook(before),
            self.register_load_state_dict_post_hook(after, prepend=True),
        )
        try:
            super().load_state_dict(state_dict)
        finally:
            for hook in hooks:
                hook.remove()

    def __setstate__(self, saved: dict[str, Any]) -> None:
        super().__setstate__(saved)
        for group in self.param_groups:
            for name, value in group_defaults().items():
                group.setdefault(name, value)
            for param in group["params"]:
                own = self.state.get(param)
                if own:
                    own["step"] = state.as_step(param, group, own["step"])

    @property
    def _step_supports_amp_scaling(self) -> bool:
        # GradScaler asks for this. A property, because deepcopy and load_state_dict keep only
        # the groups; True only where every group promises the kernel, as in torch.optim.
        return all(group["fused"] for group in self.param_groups)

    @_in_its_grad_mode
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step.

        Args:
            closure: reevaluates the model and returns the loss. (default: None)

        Returns:
            What the closure returned, or None.

        Raises:
            RuntimeError, ValueError, AssertionError: as the class says; nothing is written then.
        """
        _check_graph_capture(self)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with lock.held(self), state.made_or_undone() as made:
            groups = []
            for group in self.param_groups:
                whole = Group.empty(Options.of(group))
                self._init_group(group, *whole.all_lists(), made)  # type: ignore[call-arg]
                groups.extend(whole.by_format())
            grad_scale = getattr(self, "grad_scale", None)
            found_inf = getattr(self, "found_inf", None)
            dispatch.step(groups, grad_scale, found_inf)
        return loss

    def _init_group(
        self,
        group: dict[str, Any],
        params_with_grad: list[Tensor],
        grads: list[Tensor],
        exp_avgs: list[Tensor],
        exp_avg_sqs: list[Tensor],
        max_exp_avg_sqs: list[Tensor],
        state_steps: list[Tensor],
        exp_avg_exponents: list[Tensor] | None = None,
        exp_avg_sq_exponents: list[Tensor] | None = None,
        numbers: list[int] | None = None,
        made: state.Made | None = None,
    ) -> None:
        """Fill the lists with the parameters that have a gradient, and with their state.

        Those that torch's method has not heard of are for codes, and for what is rounded by chance.
        torch.compile knows this method by its name. It runs for every parameter at every step, so
        it goes through the lists one attribute at a time; the kernel's gatekeeper does the
        checking.
        """
        params = group["params"]
        found = [grad for param in params if (grad := param.grad) is not None]
        if len(found) != len(params):
            params = [param for param in params if param.grad is not None]
        owns: list[Any] = list(map(self.state.get, params))
        if not all(owns):
            for param, grad in zip(params, found, strict=True):
                if not self.state.get(param):
                    state.put(self.state, param, self._new_state(param, grad, group), made)
            owns = [self.state[param] for param in params]
        moments = state.moments_of(owns)
        params_with_grad += params
        grads += found
        exp_avgs += moments[0]
        exp_avg_sqs += moments[1]
        if exp_avg_exponents is not None and exp_avg_sq_exponents is not None:
            exp_avg_exponents += moments[2]
            exp_avg_sq_exponents += moments[3]
        if group["amsgrad"]:
            max_exp_avg_sqs += [state.max_exp_avg_sq(own, made) for own in owns]
        state_steps += [own["step"] for own in owns]
        if numbers is not None and state.rounds_by_chance(group):
            given = state.Numbers(self.param_groups)
            numbers += map(given.of, params, owns, repeat(made))

    def _new_state(self, param: Tensor, grad: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        check_dense(grad, "the gradient of a parameter")
        check_dense(param, "a parameter with a gradient")
        if group["fused"] and param.is_meta:
            raise RuntimeError(
                "`fused=True` requires all the params to be floating point Tensors of supported"
                f" devices: {backends.available_backends()[:-1]} but {param.dtype} and meta"
            )
        return state.new_state(param, group)


class ProxAdamW(ProxAdam):
    """:class:`ProxAdam` with decoupled weight decay: a drop-in for :class:`torch.optim.AdamW`.

    The weights are multiplied by 1 − lr · weight_decay before the Adam step, and the gradient is
    left alone. Arguments and errors are those of :class:`ProxAdam`, with ``weight_decay`` 1e-2
    by default and ``decoupled_weight_decay`` always on.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
        >>> optimizer = ProxAdamW([weight], lr=0.1, l1=0.5, weight_decay=0)
        >>> for _ in range(200):  # of ½ Σ (w − target)²
        ...     weight.grad = weight.detach() - torch.tensor([0.4, 2.0])
        ...     optimizer.step()
        >>> weight.detach().round(decimals=2)
        tensor([0.0000, 1.5000])
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        l1: float | Tensor = 0.0,
        l2: float | Tensor = 0.0,
        l21: float | Tensor = 0.0,
        l1_knee: float | Tensor = math.inf,
        metric: str = "adaptive",
        max_shrink: float = 10.0,
        state_dtype: torch.dtype | str | None = None,
        stochastic_rounding: bool | None = None,
        seed: int = 0,
        keep_zeros: bool = False,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        super().__init__(**arguments_of(locals()), decoupled_weight_decay=True)

    def __setstate__(self, saved: dict[str, Any]) -> None:
        super().__setstate__(saved)
        for group in self.param_groups:
            group["decoupled_weight_decay"] = True


def _load_kernels(group: dict[str, Any]) -> None:
    for device in {param.device for param in group["params"] if not param.is_meta}:
        reason = backends.reason_for_fallback(device.type) or backends.load(device)
        if reason and group["fused"]:
            raise RuntimeError(f"`fused=True` cannot be had: {reason}; fused=None takes torch ops.")
