"""compact: which rows go, that outputs are equal, and that the report says what is done."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cuttable import (
    Attention,
    Block,
    Residual,
    SharedKeys,
    SwiGLU,
    forget,
    kill,
    mlp,
    outputs,
    scaled_error,
    settle,
)
from proxadam import compact, compact_report

pytest.importorskip("torch_pruning")


def _cut(report):
    return {one.name: one.cut for one in report.layers if one.cut}


def _kept(report):
    return {one.name: one.rows for one in report.kept}


def _compacted(model, x, **options):
    """The smaller model and the report, which say the same, with outputs that are equal."""
    report = compact_report(model, x, **options)
    smaller = compact(model, x, **options)
    layers = dict(model.named_modules())
    for name, module in smaller.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            gone = _cut(report).get(name, ())
            assert len(module.weight) == len(layers[name].weight) - len(gone)
    assert sum(p.numel() for p in model.parameters()) == report.parameters[0]
    assert sum(p.numel() for p in smaller.parameters()) == report.parameters[1]
    again = compact_report(smaller, x, **options)
    assert not _cut(again)
    assert again.parameters[0] == report.parameters[1]
    assert again.macs == (report.macs[1], report.macs[1])
    for other in (x, torch.randn_like(x)):
        assert scaled_error(model, smaller, other) <= (1e-12 if x.dtype == torch.float64 else 1e-5)
    return smaller, report


def test_rows_of_an_mlp_go_and_their_constants_are_folded():
    """LeNet-300-100: what ReLU leaves of the biases of dead rows stands in the next bias."""
    model = mlp(784, 300, 100, 10)
    kill(model[0], range(200), bias=0.5)
    kill(model[2], range(30, 70), bias=-0.5)
    smaller, report = _compacted(model, torch.randn(3, 784))
    assert _cut(report) == {"0": tuple(range(200)), "2": tuple(range(30, 70))}
    assert [tuple(p.shape) for p in smaller.parameters()] == [
        (100, 784), (100,), (60, 100), (60,), (10, 60), (10,),
    ]  # fmt: skip
    assert report.macs == (
        3 * (784 * 300 + 300 * 100 + 100 * 10),
        3 * (784 * 100 + 100 * 60 + 60 * 10),
    )
    assert not torch.equal(smaller[2].bias[:30], model[2].bias[:30])
    assert torch.equal(smaller[4].bias, model[4].bias)  # ReLU leaves nothing of −0.5


def test_a_bias_is_made_where_a_constant_needs_one():
    model = mlp(6, 8, 4, bias=False)
    model[0] = kill(nn.Linear(6, 8), [1], bias=2.0)
    smaller, _ = _compacted(model, torch.randn(5, 6))
    torch.testing.assert_close(smaller[2].bias, 2 * model[2].weight[:, 1])
    without = mlp(6, 8, 4, bias=False)
    kill(without[0], [1])
    assert compact(without, torch.randn(5, 6))[2].bias is None


def test_units_that_nobody_reads_go_and_then_those_that_they_alone_read():
    model = mlp(6, 8, 8, 8, 3)
    forget(model[6], [1, 4])  # nothing reads units 1 and 4, whose rows are not zero
    with torch.no_grad():
        model[4].weight[[0, 2, 3, 5, 6, 7], 5] = 0.0  # only they read unit 5 of the layer before
        model[2].weight[[0, 1, 2, 3, 4, 6, 7], 0] = 0.0  # and only that unit 0 of the first
    _, report = _compacted(model, torch.randn(5, 6))
    assert _cut(report) == {"4": (1, 4), "2": (5,), "0": (0,)}
    assert all(one.dead == () for one in report.layers)


def test_double_precision_to_1e_12():
    model = mlp(20, 64, 64, 5, activation=nn.GELU).double()
    kill(model[0], range(10, 40))
    kill(model[2], range(7))
    _, report = _compacted(model, torch.randn(7, 20, dtype=torch.float64))
    assert len(_cut(report)["0"]) == 30


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits(dtype):
    model = mlp(20, 64, 64, 5).to(dtype)
    kill(model[0], range(10, 40), bias=0.25)
    x = torch.randn(7, 20, dtype=dtype)
    smaller = compact(model, x)
    assert len(smaller[0].weight) == 34
    assert smaller[2].bias.dtype == dtype
    assert scaled_error(model, smaller, x) <= 4 * torch.finfo(dtype).eps


def test_batch_norm_in_front_of_a_convolution_without_padding():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.SiLU(), nn.AvgPool2d(3, padding=1,
        count_include_pad=False), nn.Conv2d(8, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 5),
    )  # fmt: skip
    kill(settle(model)[0], [1, 2])
    kill(model[4], [0, 5])
    smaller, report = _compacted(model, torch.randn(2, 3, 16, 16))
    assert _cut(report) == {"0": (1, 2), "4": (0, 5)}
    assert len(smaller[1].running_mean) == 6
    assert smaller[9].weight.shape == (5, 16)  # four columns of the Linear a channel


@pytest.mark.parametrize("padding_mode", ["zeros", "circular", "reflect", "replicate"])
def test_a_constant_in_front_of_padding(padding_mode):
    """Zero padding makes borders of it unless it is 0; every other padding repeats it."""
    model = nn.Sequential(
        kill(kill(nn.Conv2d(3, 8, 3), [1, 2], bias=0.5), [4, 5], bias=-0.5),
        nn.ReLU(),
        nn.Conv2d(8, 4, 3, padding=1, padding_mode=padding_mode),
    )
    _, report = _compacted(model, torch.randn(2, 3, 9, 9))
    if padding_mode == "zeros":
        assert _cut(report) == {"0": (4, 5)}
        assert _kept(report) == {"0": (1, 2)}
        assert report.kept[0].reason == "its constant is not 0, which `2` has at its borders"
    else:
        assert _cut(report) == {"0": (1, 2, 4, 5)}


def test_padding_between_layers_keeps_a_constant_from_being_one():
    model = nn.Sequential(
        kill(kill(nn.Conv2d(3, 8, 3), [1], bias=0.5), [4], bias=0.0),
        nn.ZeroPad2d(1),
        nn.Conv2d(8, 4, 3),
    )
    _, report = _compacted(model, torch.randn(2, 3, 9, 9))
    assert (_cut(report), _kept(report)) == ({"0": (4,)}, {"0": (1,)})


def test_transposed_and_depthwise_convolutions():
    model = nn.Sequential(
        nn.ConvTranspose2d(3, 8, 2, stride=2), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8),
        nn.ReLU(), nn.ConvTranspose2d(8, 4, 2),
    )  # fmt: skip
    with torch.no_grad():
        model[0].weight[:, [1, 2, 6]] = 0.0
        model[0].bias[[1, 2, 6]] = -1.0
        model[2].bias[[1, 2]] = -1.0
        model[2].bias[6] = 1.0  # which a transposed convolution would spread to its borders
    smaller, report = _compacted(model, torch.randn(2, 3, 9, 9))
    assert _cut(report) == {"0": (1, 2), "2": (1, 2)}
    assert smaller[2].groups == 6


def test_a_residual_channel_goes_where_all_that_is_added_is_dead():
    model = settle(Residual())
    kill(model.conv1, [0, 3])  # within the block: alone
    kill(model.stem, [1, 2])  # on the way past it: 1 alone, 2 with the block's
    kill(model.conv2, [2, 5])
    _, report = _compacted(model, torch.randn(2, 3, 6, 6))
    assert _cut(report) == {"stem": (2,), "conv1": (0, 3), "conv2": (2,)}
    reasons = {(one.name, one.rows): one.reason for one in report.kept}
    assert "with a row of `conv2` that is not zero" in reasons["stem", (1,)]
    assert "with a row of `stem` that is not zero" in reasons["conv2", (5,)]


def test_hidden_units_of_a_transformer_go_and_what_layer_norm_reads_stays():
    model = nn.Sequential(nn.Linear(10, 32), Block(), nn.LayerNorm(32), nn.Linear(32, 7))
    kill(model[1].fc1, range(40, 90))
    kill(model[1].fc2, [3])
    _, report = _compacted(model, torch.randn(2, 5, 10))
    assert _cut(report) == {"1.fc1": tuple(range(40, 90))}
    assert _kept(report) == {"1.fc2": (3,)}
    assert "a LayerNorm, whose mean and variance" in report.kept[0].reason


@pytest.mark.parametrize("bias", [False, True])
def test_a_swiglu_unit_goes_for_any_of_its_three(bias):
    model = nn.Sequential(SwiGLU(bias=bias), nn.Linear(16, 3))
    kill(model[0].gate, [1, 2])
    kill(model[0].up, [3, 4])
    forget(model[0].down, [5, 6])
    _, report = _compacted(model, torch.randn(2, 5, 16))
    cut = (5, 6) if bias else (1, 2, 3, 4, 5, 6)
    assert _cut(report) == {"0.gate": cut, "0.up": cut}
    if bias:
        assert _kept(report) == {"0.gate": (1, 2), "0.up": (3, 4)}


@pytest.mark.parametrize("by", ["num_heads", "head_dim", "constant"])
def test_whole_heads_go_where_the_forward_follows_their_number(by):
    model = nn.Sequential(nn.Linear(10, 32), Block(attention=Attention(by=by)), nn.Linear(32, 7))
    attention = model[1].attention
    kill(attention.v, range(8, 16))  # head 1 puts out zeros
    kill(attention.v, [0, 1])  # part of head 0
    forget(attention.out, range(24, 32))  # nobody reads head 3
    smaller, report = _compacted(model, torch.randn(2, 5, 10))
    kept = {one.rows: one.reason for one in report.kept if one.name == "1.attention.v"}
    if by == "constant":
        assert _cut(report) == {}
        assert "cannot do without it" in kept[(0, 1, *range(8, 16))]
        return
    heads = (*range(8, 16), *range(24, 32))
    assert _cut(report) == {f"1.attention.{name}": heads for name in "qkv"}
    assert smaller[1].attention.num_heads == 2
    assert model[1].attention.num_heads == 4
    assert kept == {(0, 1): "it belongs to an attention head of which other rows are needed"}


def test_heads_that_share_keys_stay_and_the_rest_is_cut():
    """torch-pruning's search for what goes with them does not end by itself."""
    model = nn.Sequential(nn.Linear(10, 32), Block(attention=SharedKeys()), nn.Linear(32, 7))
    kill(model[1].attention.v, range(8))
    kill(model[1].attention.q, range(16))
    kill(model[1].fc1, range(20))
    _, report = _compacted(model, torch.randn(2, 5, 10))
    assert _cut(report) == {"1.fc1": tuple(range(20))}
    assert _kept(report) == {"1.attention.q": tuple(range(16)), "1.attention.v": tuple(range(8))}


def test_heads_of_torchs_own_attention_are_reported():
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    kill(layer.linear1, range(20))
    with torch.no_grad():
        layer.self_attn.in_proj_weight[32 + 4 : 32 + 8] = 0.0  # values of head 1, bias is 0
        layer.self_attn.out_proj.weight[:, 12:] = 0.0  # nobody reads head 3
    _, report = _compacted(nn.Sequential(layer, nn.Linear(16, 3)), torch.randn(2, 5, 16))
    assert _cut(report) == {"0.linear1": tuple(range(20))}
    assert _kept(report) == {"0.self_attn": (1, 3)}
    assert "embed_dim" in report.kept[0].reason


def test_concatenated_channels_and_a_layer_that_is_called_twice():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(16, 4)
            self.twice = nn.Linear(4, 4)

        def forward(self, x):
            x = F.relu(self.c(torch.cat([F.relu(self.a(x)), F.relu(self.b(x))], 1)))
            return self.twice(F.relu(self.twice(x)))

    model = Model()
    kill(model.a, [0, 1], bias=1.0)
    kill(model.b, [2, 7], bias=2.0)
    _, report = _compacted(model, torch.randn(5, 6))
    assert _cut(report) == {"a": (0, 1), "b": (2, 7)}


def test_rows_are_put_back_for_a_multiple():
    model = mlp(20, 64, 64, 5)
    kill(model[0], range(30), bias=1.0)  # 34 are left
    kill(model[2], range(50))  # 14
    smaller, report = _compacted(model, torch.randn(7, 20), multiple_of=8)
    assert [len(smaller[i].weight) for i in (0, 2, 4)] == [40, 16, 5]
    assert _cut(report)["0"] == tuple(range(6, 30))
    assert "multiple of 8" in report.kept[0].reason


def test_of_a_layer_that_is_dead_throughout_one_row_stays():
    model = mlp(6, 8, 4)
    kill(model[0], range(8), bias=1.0)
    smaller, report = _compacted(model, torch.randn(5, 6))
    assert smaller[0].weight.shape == (1, 6)
    assert _kept(report) == {"0": (0,)}
    assert "at least one row" in report.kept[0].reason


@pytest.mark.parametrize("multiple_of", [1, 8])
def test_nothing_dead(multiple_of):
    model = mlp(6, 10, 4)
    smaller, report = _compacted(model, torch.randn(5, 6), multiple_of=multiple_of)
    assert (report.layers, report.kept) == ((), ())
    assert str(report).startswith("no dead rows")
    for a, b in zip(model.parameters(), smaller.parameters(), strict=True):
        assert torch.equal(a, b)


def _state_of(model):
    hooks = [[*h] for m in model.modules() for h in (m._forward_hooks, m._forward_pre_hooks)]
    tensors = {n: t.clone() for n, t in (*model.named_parameters(), *model.named_buffers())}
    modes = [(m.training, {k: v for k, v in vars(m).items() if type(v) in (int, bool, str)})
             for m in model.modules()]  # fmt: skip
    return hooks, tensors, modes, [(id(p), p.requires_grad) for p in model.parameters()]


def test_the_model_stays_as_it_is():
    model = settle(Residual()).train()
    kill(model.conv1, [0, 3])
    model.stem.weight.requires_grad_(False)
    model.stem.weight.grad = None
    model.conv1.register_forward_hook(lambda *_: None)
    hooks, tensors, modes, trained = _state_of(model)
    rng = torch.get_rng_state()
    smaller = compact(model, torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(rng, torch.get_rng_state())
    assert (hooks, modes, trained) == (_state_of(model)[0], *_state_of(model)[2:])
    for name, tensor in _state_of(model)[1].items():
        assert torch.equal(tensor, tensors[name])
    assert not smaller.training
    assert [p.requires_grad for p in smaller.parameters()] == [r for _, r in trained]
    assert all(p.grad is None for p in smaller.parameters())


def test_the_smaller_model_is_a_model():
    """It is copied, saved, loaded, compiled and trained."""
    model = mlp(6, 8, 4)
    kill(model[0], [1, 2], bias=1.0)
    x = torch.randn(5, 6)
    smaller = compact(model, x)
    file = io.BytesIO()
    torch.save(smaller, file)
    file.seek(0)
    for other in (copy.deepcopy(smaller), torch.load(file, weights_only=False)):
        assert torch.equal(outputs(other, x), outputs(smaller, x))
    fresh = mlp(6, 6, 4)
    fresh.load_state_dict(smaller.state_dict())
    assert torch.equal(outputs(fresh, x), outputs(smaller, x))
    assert torch.equal(torch.compile(smaller, backend="eager")(x), smaller(x))
    smaller.train()(x).sum().backward()
    assert all(p.grad.shape == p.shape for p in smaller.parameters())


@pytest.mark.parametrize("kind", ["tuple", "dict"])
def test_inputs_in_a_tuple_or_a_dict_and_outputs_in_a_dict(kind):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.mlp = nn.Embedding(9, 6), mlp(6, 8, 4)

        def forward(self, tokens, scale):
            return {"logits": self.mlp(self.embed(tokens) * scale), "rest": [tokens]}

    model = Model()
    kill(model.mlp[0], [1, 2], bias=1.0)
    inputs = {"tokens": torch.randint(9, (2, 5)), "scale": torch.rand(1)}
    smaller = compact(model, inputs if kind == "dict" else tuple(inputs.values()))
    assert len(smaller.mlp[0].weight) == 6
    torch.testing.assert_close(smaller(**inputs)["logits"], model(**inputs)["logits"])


def test_the_report_is_a_table():
    model = mlp(4, 12, 2)
    kill(model[0], range(10), bias=1.0)
    kill(model[2], [1])
    report = compact_report(model, torch.randn(1, 4))
    assert str(report).splitlines() == [
        "layer  rows  left  dead  cut",
        "0      12    2     10    [0, 1, 2, 3, 4, 5, 6, 7, …] (10)",
        "2      2     2     1     none",
        "parameters: 86 → 16 (-81.4%)",
        "multiply-adds: 72 → 12 (-83.3%)",
        "kept:",
        "  2 [1]: it reaches the model's output",
    ]
    assert report.layers[0].after == 2
