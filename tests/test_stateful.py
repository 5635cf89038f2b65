"""Programs drawn at random: each step is the oracle's, or raises and has changed nothing.

A machine holds one optimizer. Rules change its options, gradients, tensors and memory, save, load
and copy it, and step it on every path. The same programs run each time, unless
``PROXADAM_STATEFUL_SECONDS=600`` asks for new ones for as long as that.

Not drawn, for nothing is promised: betas, eps and lr of which float32 makes nothing sensible are
run and not compared; a parameter whose data is a MaskedTensor, which torch cannot print or copy.
"""

from __future__ import annotations

import collections
import contextlib
import copy
import inspect
import os
import pickle
import time
import warnings
from dataclasses import replace
from unittest import mock

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)
from torch import Tensor
from torch.nn import Parameter

from memory import (
    MOMENTS,
    NARROW,
    Entry,
    Picture,
    compare,
    find_shared,
    is_plain,
    is_whole,
    simulate,
)  # fmt: skip
from proxadam import backends, prox_adam
from stateful_draws import (
    LOADS,
    MUTATIONS,
    NAMES,
    PATHS,
    PATHS_ONLY,
    REFUSED,
    SLOTS,
    SPOILS,
    any_option,
    as_numbers,
    fill,
    is_legal,
    layouts,
    legal_options,
    looseness,
    make,
    seeds,
    specs,
    values_of,
)  # fmt: skip
from tools import TWINS, threads

SECONDS = float(os.environ.get("PROXADAM_STATEFUL_SECONDS", "0"))
ARGUMENTS = inspect.signature(prox_adam).parameters
COUNTS: collections.Counter[str] = collections.Counter()

# ---- the machine ------------------------------------------------------------------------------

ERRORS = (RuntimeError, ValueError, TypeError)
index = st.integers(0, 4)


class Steps(RuleBasedStateMachine):
    """One optimizer, and what may be done to it."""

    def __init__(self):
        super().__init__()
        self.stack = contextlib.ExitStack()
        self.stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # torch's, of prototypes, duplicates and leaves
        self.threads = 1
        self.kernel = backends.kernel("cpu")
        if self.kernel:
            self.stack.callback(self.kernel.use_capability, self.kernel.capability())
        self.saved = None
        COUNTS["programs"] += 1

    def teardown(self):
        self.stack.close()

    @initialize(
        name=st.sampled_from(sorted(TWINS)),
        groups=st.lists(st.lists(specs, min_size=1, max_size=3), min_size=1, max_size=3),
        path=st.sampled_from(PATHS),
        options=st.lists(legal_options.filter(lambda o: o[0] not in PATHS_ONLY), max_size=4),
        alike=st.sampled_from([None, None, None, (3, 4), (40_001,)]),
    )
    def construct(self, name, groups, path, options, alike):
        if alike:  # so that they can share
            first = groups[0][0]
            groups = [[replace(first, shape=alike, seed=s.seed) for s in g] for g in groups]
        if not self.kernel:
            path = {k: v for k, v in path.items() if v is not True or k != "fused"}
        self.cls, self.theirs = TWINS[name]
        made = [{"params": [self.parameter(s) for s in group]} for group in groups]
        self.optimizer = self.cls(made, **path)
        for at, (option, value) in enumerate(options):
            self.optimizer.param_groups[at % len(groups)][option] = eval(value, NAMES)

    def parameter(self, spec):
        param = Parameter(make(spec.shape, spec.dtype, spec.layout, spec.values, spec.seed))
        self.give(param, make(spec.shape, spec.dtype, spec.layout, "ordinary", spec.seed + 1))
        return param

    @staticmethod
    def give(param, grad):
        """Set a gradient of any dtype; False where torch lets nobody."""
        before, param.grad = param.grad, None
        try:
            param.grad_dtype = None
            param.grad = grad
        except (RuntimeError, TypeError):
            param.grad = before
            return False
        return True

    @property
    def params(self):
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def param(self, i):
        return self.params[i % len(self.params)]

    def group(self, i):
        groups = self.optimizer.param_groups
        return groups[i % len(groups)]

    # ---- a step and what is asked of it -------------------------------------------------------

    def attempt(self, call, groups=None, amp=(1.0, 0.0), others=(), refusals=()):
        """Step: the oracle's result, or an exception and nothing changed."""
        grad_scale, found_inf = amp
        groups = self.optimizer.param_groups if groups is None else groups
        writes_grads = grad_scale != 1
        before = Picture(self.optimizer, *others)
        entries = [
            Entry(p, p.grad, dict(self.optimizer.state.get(p, {})), group, f"{g}.{i}")
            for g, group in enumerate(groups)
            for i, p in enumerate(group["params"])
            if p.grad is not None
        ]
        find_shared(entries, writes_grads)
        COUNTS["steps"] += 1
        try:
            with threads(self.threads):
                call()
        except Exception as error:
            COUNTS["refused"] += 1
            self.check_error(error, entries, groups, refusals)
            assert not (changed := before.changes()), f"{error!r}, and changed: {changed}"
            return False
        if found_inf:
            changed = before.changes(but_new_state=True)
            assert not changed, f"skipped, and changed: {changed}"
            return True
        for entry in entries:
            why = entry.must_be_refused(writes_grads)
            assert not why, f"parameter {entry.place} was stepped, although {why}"
        self.check_step(before, entries, grad_scale)
        COUNTS["entries"] += len(entries)
        return True

    def check_error(self, error, entries, groups, refusals):
        captured = isinstance(error, AssertionError) and "If capturable=True" in str(error)
        assert isinstance(error, ERRORS) or captured, f"{error!r}"
        assert str(error)
        if not all(map(is_legal, groups)):
            return
        if any(entry.must_be_refused(False) or entry.may_be_refused() for entry in entries):
            return
        for entry in entries:
            o = entry.options
            if entry.param.is_complex() and o["metric"] == "adaptive" and (o["l1"] or o["l2"]):
                return
            if entry.param.is_complex() and o["l21"]:
                return
        if any(group["fused"] for group in groups) and "`fused=True`" in str(error):
            return
        if captured and any(group["capturable"] for group in groups):
            return
        if "as a Tensor is not supported" in str(error) and any(g["foreach"] for g in groups):
            return
        if isinstance(error, refusals):
            return
        raise AssertionError(f"nothing is wrong with this step, and it was refused: {error!r}")

    def check_step(self, before, entries, grad_scale):
        twin, rest = before.twin(), before.twin()
        expected = []
        for entry in entries:
            numbers = as_numbers(entry.options)
            odd = entry.inward or not all(map(_comparable, entry.tensors().values()))
            if numbers is None or odd:
                expected.append(None)  # and nobody knows what comes of those it shares with
                continue
            expected.append(simulate(entry, numbers, twin, grad_scale))
        unknown = any(
            e is None and entry.shares for e, entry in zip(expected, entries, strict=True)
        )
        for entry, wanted in zip(entries, expected, strict=True):
            now = self.optimizer.state[entry.param]
            actual = {"param": entry.param, "grad": entry.grad, **now}
            for name, tensor in entry.tensors().items():
                same = tensor is actual[name]
                assert same, f"{name} of {entry.place} is another tensor now"
                if is_plain(tensor) and (name != "grad" or grad_scale != 1):
                    rest.view(tensor).copy_(tensor.detach())
            if wanted is None:
                continue
            complex_prox = entry.param.is_complex() and (
                wanted.options["l1"] or wanted.options["l2"]
            )
            loose = looseness(entry.options, entry.param.dtype)
            if entry.shares:
                if unknown or grad_scale != 1 or entry.options["foreach"]:
                    continue
                self.check_shared(entry, actual, twin)
                continue
            for name in wanted.values:
                if name == "param" and complex_prox:
                    continue
                compare(name, actual[name], wanted, entry, loose)
        now = Picture(self.optimizer, *before.others)
        for key, untouched in rest.storages.items():
            if key in now.bytes:
                same = torch.equal(
                    torch.empty(0, dtype=torch.uint8).set_(untouched), now.bytes[key]
                )
                assert same, f"bytes that no step writes have changed: {before._names(key)}"
        moved = [n for n, fact in before.facts.items() if now.facts.get(n) != fact]
        assert not moved, f"not what they were: {moved}"

    def check_shared(self, entry, actual, twin):
        """Entries that share are stepped in order: an error of one goes on into the next."""
        for name, tensor in entry.tensors().items():
            if name == "grad":
                continue
            want, got = twin.view(tensor).detach(), actual[name].detach()
            if name == "step" and want.item() == round(want.item()):
                assert torch.equal(want, got), f"step of {entry.place} is {got}, expected {want}"
            elif want.numel() and want.isfinite().all() and got.isfinite().all():
                of_all = [t.dtype for t in entry.tensors().values()]
                narrow = any(dtype in NARROW for dtype in of_all)
                top = want.abs().max().item()
                rtol = 0.05 if narrow else 1e-4
                torch.testing.assert_close(got, want, rtol=rtol, atol=rtol * max(top, 1e-6))

    # ---- steps --------------------------------------------------------------------------------

    @rule()
    def step(self):
        self.attempt(self.optimizer.step)

    @rule(values=values_of, layout=layouts, seed=seeds, wide=st.booleans())
    def step_with_gradients(self, values, layout, seed, wide):
        for i, param in enumerate(self.params):
            if param.is_complex() and values == "special":
                continue
            dtype = torch.float32 if wide and param.dtype in NARROW else param.dtype
            self.give(param, make(tuple(param.shape), dtype, layout, values, seed + i))
        self.attempt(self.optimizer.step)

    @rule(i=index)
    def step_with_an_expanded_gradient(self, i):
        param = self.param(i)
        self.give(param, torch.full((), 0.25, dtype=param.dtype).expand(param.shape))
        self.attempt(self.optimizer.step)

    @rule(fails=st.booleans(), seed=seeds)
    def step_with_a_closure(self, fails, seed):
        """The gradients come from the closure, before the step looks."""
        for i, param in enumerate(self.params):
            self.give(param, make(tuple(param.shape), param.dtype, "dense", "ordinary", seed + i))

        def closure():
            assert torch.is_grad_enabled()
            if fails:
                raise ValueError("of the closure's own")
            return 7.0

        def call():
            assert self.optimizer.step(closure) == 7.0

        self.attempt(call, refusals=ValueError if fails else ())

    @rule(
        scale=st.sampled_from([None, 1.0, 2.0, 65536.0]),
        found=st.sampled_from([None, 0.0, 0.0, 1.0, 2.0]),
        shape=st.sampled_from([(), (1,)]),
    )
    def step_under_amp(self, scale, found, shape):
        """As GradScaler sets them."""
        others = []
        for name, value in (("grad_scale", scale), ("found_inf", found)):
            if value is not None:
                others.append(torch.full(shape, value))
                setattr(self.optimizer, name, others[-1])
        writes = scale is not None and any(
            _overlaps(p.grad) for p in self.params if p.grad is not None
        )
        amp = (1.0 if scale is None else scale, found or 0.0)
        try:
            self.attempt(
                self.optimizer.step, amp=amp, others=others, refusals=RuntimeError if writes else ()
            )
        finally:
            for name in ("grad_scale", "found_inf"):
                if hasattr(self.optimizer, name):
                    delattr(self.optimizer, name)

    @rule(i=index, with_grad_mode=st.booleans(), short=st.sampled_from([None, None, *range(6)]))
    def step_by_the_function(self, i, with_grad_mode, short):
        """prox_adam on the tensors of a group, or on lists of different lengths."""
        group = self.group(i)
        params = [p for p in group["params"] if p.grad is not None]
        states = [self.optimizer.state.get(p) for p in params]
        names = ["exp_avg", "exp_avg_sq", "max_exp_avg_sq", "step"]
        needed = [n for n in names if group["amsgrad"] or n != "max_exp_avg_sq"]
        if not all(state and all(n in state for n in needed) for state in states):
            return
        lists = [params, [p.grad for p in params]]
        lists += [[s[n] for s in states] if n in needed else [] for n in names]
        if short is not None:
            lists[short] = lists[short][:-1]
        betas = group["betas"]
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            return
        options = {n: v for n, v in group.items() if n in ARGUMENTS and n != "params"}
        refusals = RuntimeError if with_grad_mode else ()
        if short is not None:
            refusals = (*([refusals] if refusals else []), ValueError)

        def call():
            with torch.set_grad_enabled(with_grad_mode):
                prox_adam(*lists, beta1=betas[0], beta2=betas[1], **options)

        if short is not None and lists[short] == [] and not params:
            return
        if short == 4 and not group["amsgrad"]:
            return
        stepped = self.attempt(call, groups=[group], refusals=refusals)
        assert not (stepped and short is not None), "lists of different lengths were stepped"

    # ---- how a step is taken ------------------------------------------------------------------

    @rule(count=st.integers(1, 4), capability=st.integers(0, 3))
    def step_on_threads(self, count, capability):
        self.threads = count
        if self.kernel:
            names = self.kernel.capabilities()
            self.kernel.use_capability(names[capability % len(names)])
        self.attempt(self.optimizer.step)

    @rule()
    def step_without_a_kernel(self):
        """As where no compiler was."""
        reason = "the cpu kernel is not built here"
        with (
            mock.patch.object(backends, "kernel", lambda device_type: None),  # noqa: ARG005
            mock.patch.object(backends, "reason_for_fallback", lambda device_type: reason),  # noqa: ARG005
        ):
            self.attempt(self.optimizer.step)

    @rule(i=index, option=legal_options)
    def set_option(self, i, option):
        name, value = option
        self.group(i)[name] = eval(value, NAMES)
        self.attempt(self.optimizer.step)

    @rule(i=index, path=st.sampled_from(PATHS))
    def set_path(self, i, path):
        self.group(i).update({"foreach": None, "fused": None, **path})
        self.attempt(self.optimizer.step)

    @rule(i=index, options=st.lists(any_option, min_size=1, max_size=2))
    def step_with_any_option(self, i, options):
        group = self.group(i)
        before = dict(group)
        for name, value in options:
            group[name] = eval(value, NAMES)
        self.attempt(self.optimizer.step)
        group.update(before)

    @rule()
    def step_with_autograd(self):
        """On leaves, which autograd lets nobody write."""
        self.optimizer.defaults["differentiable"] = True
        self.attempt(self.optimizer.step, refusals=RuntimeError)
        self.optimizer.defaults["differentiable"] = False

    # ---- tensors ------------------------------------------------------------------------------

    @rule(i=index, none=st.booleans())
    def take_a_gradient_away(self, i, none):
        if none:
            self.param(i).grad = None
        else:
            self.optimizer.zero_grad(set_to_none=False)
        self.attempt(self.optimizer.step)

    @rule(i=index)
    def forget_the_state(self, i):
        self.optimizer.state.pop(self.param(i), None)
        self.attempt(self.optimizer.step)

    @rule(i=index, values=values_of, layout=layouts, seed=seeds)
    def swap_the_data(self, i, values, layout, seed):
        param = self.param(i)
        param.data = make(tuple(param.shape), param.dtype, layout, values, seed)
        self.attempt(self.optimizer.step)

    @rule(i=index, name=st.sampled_from(MOMENTS), layout=layouts, seed=seeds)
    def swap_a_moment(self, i, name, layout, seed):
        state = self.optimizer.state.get(self.param(i), {})
        if name in state and not state[name].is_complex():
            new = make(tuple(state[name].shape), state[name].dtype, layout, "ordinary", seed)
            state[name] = new if name == "exp_avg" else new.abs_()
        self.attempt(self.optimizer.step)

    def slot(self, param, name):
        if name in ("param", "grad"):
            return param.data if name == "param" else param.grad
        return self.optimizer.state.get(param, {}).get(name)

    def put(self, param, name, value):
        if name == "param":
            try:
                param.data = value
            except (RuntimeError, TypeError):
                return False
            return True
        if name == "grad":
            return self.give(param, value)
        self.optimizer.state[param][name] = value
        return True

    @rule(
        i=index,
        spoils=st.lists(
            st.tuples(
                index, st.sampled_from(SLOTS), st.deferred(lambda: st.sampled_from(sorted(SPOILS)))
            ),
            min_size=1,
            max_size=2,
        ),
        scaled=st.booleans(),
    )
    def step_with_spoiled_tensors(self, i, spoils, scaled):
        """And then as before."""
        whole = Picture(self.optimizer)
        kept = []
        for i, name, spoil in spoils:
            param = self.param(i)
            tensor = self.slot(param, name)
            if not is_plain(tensor) or not is_whole(tensor) or (name, spoil) == ("param", "masked"):
                continue  # torch itself cannot print or copy masked data in a parameter
            old = tensor.detach().clone()
            try:
                bad = SPOILS[spoil](tensor)
            except (RuntimeError, TypeError):  # not of this tensor
                continue
            if self.put(param, name, bad):
                kept.append((param, name, old))
        if scaled:
            self.optimizer.grad_scale = torch.tensor(2.0)
        try:
            self.attempt(
                self.optimizer.step,
                amp=(2.0 if scaled else 1.0, 0.0),
                refusals=RuntimeError if scaled else (),
            )
        finally:
            if scaled:
                del self.optimizer.grad_scale
        for key, storage in whole.storages.items():
            if storage.nbytes() < whole.bytes[key].numel():
                storage.resize_(whole.bytes[key].numel())
                torch.empty(0, dtype=torch.uint8).set_(storage).copy_(whole.bytes[key])
        for param, name, old in reversed(kept):
            assert self.put(param, name, old)

    @rule(
        i=index,
        j=index,
        names=st.tuples(st.sampled_from(SLOTS), st.sampled_from(SLOTS)),
        overlap=st.sampled_from([1.0, 1.0, 0.5, 0.0]),
        seed=seeds,
    )
    def share_memory(self, i, j, names, overlap, seed):
        """Two tensors, of one parameter or of two, in one buffer: all, half or one element."""
        one, other = self.param(i), self.param(j)
        tensors = [self.slot(p, name) for p, name in zip((one, other), names, strict=True)]
        if not all(map(is_plain, tensors)) or (one is other and names[0] == names[1]):
            return
        if tensors[0].dtype != tensors[1].dtype or not all(t.numel() for t in tensors):
            return
        sizes = [t.numel() for t in tensors]
        common = max(1, int(overlap * min(sizes)))
        buffer = torch.zeros(sum(sizes) - common, dtype=tensors[0].dtype)
        start = sizes[0] - common
        views = [
            buffer[: sizes[0]].view(tensors[0].shape),
            buffer[start : start + sizes[1]].view(tensors[1].shape),
        ]
        for view, tensor in zip(views, tensors, strict=True):
            view.copy_(tensor)
        if "exp_avg_sq" in names or "max_exp_avg_sq" in names or "step" in names:
            buffer.copy_(buffer.abs() if not buffer.is_complex() else buffer)
        before = [t.detach().clone() for t in tensors]
        done = [self.put(p, n, v) for p, n, v in zip((one, other), names, views, strict=True)]
        assert all(done)
        fill(buffer, "ordinary", seed) if seed % 3 == 0 and "step" not in names else None
        if "exp_avg_sq" in names or "max_exp_avg_sq" in names:
            buffer.copy_(buffer.abs() if not buffer.is_complex() else buffer)
        for _ in range(2):
            self.attempt(self.optimizer.step)
        if seed % 2:  # or they go on so
            for param, name, old in zip((one, other), names, before, strict=True):
                self.put(param, name, old)

    @rule(i=index, j=index, name=st.sampled_from(["step", *MOMENTS, "all", "grad", "param"]))
    def share_a_tensor(self, i, j, name):
        """As a copied expert shares its state."""
        one, other = self.param(i), self.param(j)
        if one.shape != other.shape or one.dtype != other.dtype:
            return
        state = self.optimizer.state
        if name in ("grad", "param"):
            tensor = self.slot(one, name)
            if tensor is not None:
                self.put(other, name, tensor)
        elif one in state and other in state:
            if name == "all":
                state[other] = state[one]
            elif name in state[one]:
                state[other][name] = state[one][name]
        self.attempt(self.optimizer.step)

    # ---- copies and files ---------------------------------------------------------------------

    @rule(how=st.sampled_from(["deepcopy", "pickle"]))
    def copy_the_optimizer(self, how):
        before = Picture(self.optimizer)
        grads = [p.grad for p in self.params]
        if how == "deepcopy":
            other = copy.deepcopy(self.optimizer)
        else:
            other = pickle.loads(pickle.dumps(self.optimizer))
        assert not before.changes()
        old, self.optimizer = self.optimizer, other
        for param, grad, was in zip(self.params, grads, _params_of(old), strict=True):
            if grad is not None:
                assert self.give(param, grad.detach().clone())
            _assert_equal(param, was)
            assert list(other.state.get(param, {})) == list(old.state.get(was, {}))
            for name, tensor in old.state.get(was, {}).items():
                _assert_equal(other.state[param][name], tensor)
        for group, was in zip(other.param_groups, old.param_groups, strict=True):
            assert list(group) == list(was)

    @rule()
    def save(self):
        before = Picture(self.optimizer)
        self.saved = copy.deepcopy(self.optimizer.state_dict())
        assert not before.changes()

    @rule(i=index, change=st.deferred(lambda: st.sampled_from(sorted(MUTATIONS))), seed=seeds)
    def load(self, i, change, seed):
        """What was saved, or this very state, after a change; and a step from there."""
        saved = copy.deepcopy(self.saved or self.optimizer.state_dict())
        mutate, outcome = MUTATIONS[change]
        keys = sorted(saved["state"])
        if not keys and any(
            word in change for word in ("step", "moment", "state", "exp_avg", "of")
        ):
            return
        state = saved["state"][keys[i % len(keys)]] if keys else {}
        mutate(saved, state)
        before = Picture(self.optimizer)
        fits = self.saved_fits(saved)
        COUNTS["loads"] += 1
        try:
            self.optimizer.load_state_dict(saved)
        except Exception as error:
            assert isinstance(error, ValueError), f"{change}: {error!r}"
            assert not (changed := before.changes()), f"{change}: {error!r}, and {changed}"
            assert outcome != LOADS or not fits, f"{change} should load: {error!r}"
            return
        assert outcome != REFUSED, f"{change} was loaded"
        if fits:
            self.check_loaded(saved)
        for k, param in enumerate(self.params):
            self.give(param, make(tuple(param.shape), param.dtype, "dense", "ordinary", seed + k))
        self.attempt(self.optimizer.step)

    def saved_fits(self, saved):
        """Whether what was saved, before it was changed, is of these parameters and options."""
        groups = saved.get("param_groups")
        if not isinstance(groups, list) or len(groups) != len(self.optimizer.param_groups):
            return False
        if not all(isinstance(group, dict) and "params" in group for group in groups):
            return False
        pairs = list(zip(self.optimizer.param_groups, groups, strict=True))
        if any(len(ours["params"]) != len(theirs["params"] or ()) for ours, theirs in pairs):
            return False
        return all(
            is_legal({**ours, **theirs, "state_dtype": ours["state_dtype"]})
            for ours, theirs in pairs
        )

    def check_loaded(self, saved):
        for ours, theirs in zip(self.optimizer.param_groups, saved["param_groups"], strict=True):
            for param, key in zip(ours["params"], theirs["params"], strict=True):
                was, now = saved["state"].get(key, {}), self.optimizer.state.get(param, {})
                for name in ("step", *MOMENTS):
                    if name not in was:
                        continue
                    assert isinstance(now[name], Tensor)
                    want = torch.as_tensor(was[name])
                    if is_plain(want) and want.numel() == now[name].numel() and is_whole(want):
                        want = want.detach().reshape(now[name].shape).to(now[name].dtype)
                        _assert_equal(now[name].detach(), want)

    @rule()
    def go_through_torch(self):
        """Into torch.optim's optimizer, and back."""
        if not all(map(is_legal, self.optimizer.param_groups)):
            return
        saved = copy.deepcopy(self.optimizer.state_dict())
        groups = [{"params": g["params"]} for g in self.optimizer.param_groups]
        theirs = self.theirs(groups)
        theirs.load_state_dict(saved)
        before = Picture(self.optimizer)
        options = [
            {k: v for k, v in g.items() if k != "params"} for g in self.optimizer.param_groups
        ]
        try:
            self.optimizer.load_state_dict(theirs.state_dict())
        except Exception as error:
            assert isinstance(error, ValueError), f"{error!r}"
            assert not before.changes()
            raise AssertionError(f"torch's state dict was refused: {error!r}") from error
        for group, was in zip(self.optimizer.param_groups, options, strict=True):
            assert {k for k in group if k != "params"} >= set(was)
        self.check_loaded(theirs.state_dict())
        self.attempt(self.optimizer.step)

    @precondition(lambda self: len(self.params) < 6)
    @rule(
        added=st.lists(specs, min_size=1, max_size=2),
        options=st.lists(st.one_of(legal_options, any_option), max_size=2),
        again=st.booleans(),
    )
    def add_a_group(self, added, options, again):
        params = [self.parameter(spec) for spec in added]
        if again:
            params.append(self.param(0))  # which is in a group already
        group = {"params": params, **{name: eval(value, NAMES) for name, value in options}}
        before = Picture(self.optimizer)
        count = len(self.optimizer.param_groups)
        try:
            self.optimizer.add_param_group(group)
        except Exception as error:
            assert isinstance(error, ERRORS), f"{error!r}"
            assert not (changed := before.changes()), f"{error!r}, and changed: {changed}"
            assert len(self.optimizer.param_groups) == count
            return
        assert not again
        self.attempt(self.optimizer.step)
        if not is_legal(self.optimizer.param_groups[-1]):
            for param in self.optimizer.param_groups.pop()["params"]:
                self.optimizer.state.pop(param, None)


def _overlaps(tensor):
    pairs = zip(tensor.stride(), tensor.shape, strict=True)
    return any(stride == 0 and n > 1 for stride, n in pairs)


def _params_of(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def _comparable(tensor):
    return is_plain(tensor) or (isinstance(tensor, Tensor) and tensor._is_zerotensor())


def _assert_equal(actual, expected):
    if not isinstance(expected, Tensor):
        assert actual == expected
        return
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    assert torch.equal(actual.detach().nan_to_num(nan=7.0), expected.detach().nan_to_num(nan=7.0))


SETTINGS = settings(
    max_examples=100,
    stateful_step_count=20,
    deadline=None,
    derandomize=not SECONDS,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def test_every_step_is_right_or_changes_nothing(capsys):
    start = time.monotonic()
    run_state_machine_as_test(Steps, settings=SETTINGS)
    while time.monotonic() - start < SECONDS:
        run_state_machine_as_test(Steps, settings=SETTINGS)
    if SECONDS:
        counted = ", ".join(f"{count:,} {what}" for what, count in COUNTS.items())
        with capsys.disabled():
            print(f"\n{counted} in {time.monotonic() - start:.0f} s")
    assert COUNTS["entries"] > COUNTS["refused"] > 0, COUNTS  # both ends of it have been seen
