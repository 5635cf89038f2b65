"""What torch's own tests ask of every optimizer's state, asked of ours on every backend."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn import Parameter

from optim_db import each_info, inputs
from test_construction import OWN_DEFAULTS
from tools import (
    LOOP,
    TWINS,
    assert_same_bits,
    needs_cuda,
    params_of,
    regression,
    saved_and_loaded,
    snapshot,
    weights,
)


@each_info
def test_a_state_is_there_after_a_step(info, backend):
    for options in inputs(info, backend):
        (param,) = weights((5,))
        optimizer = info.optim_cls([param], **options)
        assert not optimizer.state
        optimizer.step()
        names = [
            "step",
            "exp_avg",
            "exp_avg_sq",
            *["max_exp_avg_sq"] * options.get("amsgrad", False),
        ]
        assert list(optimizer.state[param]) == names


@each_info
def test_state_dicts_of_the_same_run_are_the_same(info, backend):
    for options in inputs(info, backend):
        weight, bias, loss = regression()
        optimizer = info.optim_cls([weight, bias], **options)
        for _ in range(3):
            optimizer.step(loss)
        before = copy.deepcopy(optimizer.state_dict())
        given = copy.deepcopy(before)
        weight_c, bias_c = (Parameter(p.detach().clone()) for p in (weight, bias))
        again = info.optim_cls([weight_c, bias_c], **options)
        again.load_state_dict(given)
        assert_same_state_dict(given, before)
        for _ in range(3):
            optimizer.step(loss)
            weight_c.grad, bias_c.grad = weight.grad.clone(), bias.grad.clone()
            again.step()
        torch.testing.assert_close([weight_c, bias_c], [weight, bias], rtol=0, atol=0)
        assert_same_state_dict(again.state_dict(), optimizer.state_dict())
        again.param_groups.extend(again.param_groups)
        saved, doubled = optimizer.state_dict()["param_groups"], again.state_dict()["param_groups"]
        assert [g["params"] for g in doubled] == [saved[0]["params"]] * 2


def assert_same_state_dict(actual, expected):
    assert actual["param_groups"] == expected["param_groups"]
    assert list(actual["state"]) == list(expected["state"])
    torch.testing.assert_close(actual["state"], expected["state"], rtol=0, atol=0)


@each_info
def test_saved_and_loaded_with_weights_only(info, backend):
    for options in inputs(info, backend):
        optimizer = info.optim_cls(weights((5, 3), (3,)), **options)
        optimizer.step()
        again = info.optim_cls(weights((5, 3), (3,)), **options)
        again.load_state_dict(saved_and_loaded(optimizer.state_dict()))
        assert_same_state_dict(again.state_dict(), optimizer.state_dict())
        assert list(again.state_dict()["state"]) == [0, 1]


@each_info
@pytest.mark.parametrize("missing", ["torch's later flags", *OWN_DEFAULTS])
def test_older_state_dicts_are_loaded(info, backend, missing):
    flags = info.not_og_supported_flags if missing not in OWN_DEFAULTS else [missing]
    for options in inputs(info, backend):
        options["weight_decay"] = 0.25
        optimizer = info.optim_cls(weights((5, 3), (3,)), **options)
        optimizer.step()
        kept = {flag: optimizer.param_groups[0][flag] for flag in flags}
        older = copy.deepcopy(optimizer.state_dict())
        for group in older["param_groups"]:
            for flag in flags:
                del group[flag]
            group["weight_decay"] = 0.5
        optimizer.load_state_dict(older)
        (group,) = optimizer.param_groups
        assert {flag: group[flag] for flag in flags} == kept
        assert group["weight_decay"] == 0.5
        optimizer.step()


@each_info
def test_a_step_that_is_a_number_is_loaded(info, backend):
    """As Adam saved it before torch 1.12; one that is pickled whole comes by __setstate__."""
    for options in inputs(info, backend):
        optimizer = info.optim_cls(weights((5, 3)), **options)
        optimizer.step()
        older = copy.deepcopy(optimizer.state_dict())
        older["state"][0]["step"] = older["state"][0]["step"].item()
        optimizer.load_state_dict(older)
        optimizer.step()
        state = optimizer.state[params_of(optimizer)[0]]
        assert isinstance(state["step"], torch.Tensor)
        assert state["step"] == 2


@each_info
@pytest.mark.parametrize("saver_is_named", [True, False], ids=["named", "unnamed"])
@pytest.mark.parametrize("loader_is_named", [True, False], ids=["to named", "to unnamed"])
def test_named_and_unnamed_load_each_other(info, saver_is_named, loader_is_named):
    theirs = dict(TWINS.values())[info.optim_cls]

    def names_after(cls):
        saver, loader = (
            cls(model.named_parameters() if named else model.parameters())
            for model, named in (
                (nn.Linear(2, 3), saver_is_named),
                (nn.Linear(2, 3), loader_is_named),
            )
        )
        for param in params_of(saver):
            param.grad = torch.ones_like(param)
        saver.step()
        loader.load_state_dict(saver.state_dict())
        for param in params_of(loader):
            param.grad = torch.ones_like(param)
        loader.step()
        return loader.param_groups[0].get("param_names")

    assert names_after(info.optim_cls) == names_after(theirs)


@each_info
def test_deepcopy_and_pickle_keep_every_public_attribute(info, backend):
    for options in inputs(info, backend):
        optimizer = info.optim_cls(weights((5, 3)), **options)
        optimizer.step()
        buffer = io.BytesIO()
        torch.save(optimizer, buffer)
        buffer.seek(0)
        public = {name for name in vars(optimizer) if not name.startswith("_")}
        assert public == {"defaults", "state", "param_groups"}
        for copied in (copy.deepcopy(optimizer), torch.load(buffer, weights_only=False)):
            assert {name for name in vars(copied) if not name.startswith("_")} == public
            assert_same_bits(snapshot(copied), snapshot(optimizer))
            assert copied.defaults == optimizer.defaults
            copied.step(lambda: None)
            (param,) = params_of(copied)
            assert copied.state[param]["step"] == 1, "a copy has no gradients"
            param.grad = torch.ones_like(param)
            copied.step()
            assert copied.state[param]["step"] == 2


@needs_cuda
@each_info
@pytest.mark.parametrize("path", [LOOP, {"foreach": True}, {}, {"fused": True}])
def test_state_goes_with_the_parameters_to_their_device(info, path):
    for of, to in (("cpu", "cuda"), ("cuda", "cpu")):
        for case in info.optim_inputs_func("cpu"):
            saver, loader = (
                info.optim_cls([Parameter(torch.ones(5, device=d))], **case.kwargs, **path)
                for d in (of, to)
            )
            params_of(saver)[0].grad = torch.ones(5, device=of)
            saver.step()
            loader.load_state_dict(copy.deepcopy(saver.state_dict()))
            (param,) = params_of(loader)
            state = loader.state[param]
            assert state["exp_avg"].device.type == to
            assert state["step"].device.type == (to if path.get("fused") else "cpu")
            param.grad = torch.ones_like(param)
            loader.step()
            assert state["step"] == 2
