"""Models with dead rows for compact, small enough to count by hand."""

from __future__ import annotations

import copy
import itertools

import torch
import torch.nn.functional as F
from torch import nn


@torch.no_grad()
def kill(layer, rows, bias=None):
    """Zero rows of a layer's weight; its bias stays, or is this number there."""
    layer.weight[list(rows)] = 0.0
    if bias is not None:
        layer.bias[list(rows)] = bias
    return layer


@torch.no_grad()
def forget(layer, columns):
    """Zero columns of a layer's weight."""
    layer.weight[:, list(columns)] = 0.0
    return layer


@torch.no_grad()
def settle(model):
    """Give batch norms statistics and weights as if they were trained; eval mode."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor in (module.weight, module.running_var):
                tensor.uniform_(0.5, 2.0)
            for tensor in (module.bias, module.running_mean):
                tensor.normal_()
    return model.eval()


def outputs(model, x):
    with torch.no_grad():
        return copy.deepcopy(model).eval()(x)


def scaled_error(model, smaller, x):
    """The largest difference of outputs, over the largest magnitude."""
    expected = outputs(model, x)
    return ((outputs(smaller, x) - expected).abs().max() / expected.abs().max()).item()


class SwiGLU(nn.Module):
    def __init__(self, width=16, hidden=24, bias=False):
        super().__init__()
        self.gate, self.up = (nn.Linear(width, hidden, bias=bias) for _ in range(2))
        self.down = nn.Linear(hidden, width, bias=bias)

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Attention(nn.Module):
    """With heads of its own; ``by`` says how its forward takes their number."""

    def __init__(self, width=32, heads=4, bias=False, by="num_heads"):
        super().__init__()
        self.num_heads, self.head_dim, self.by = heads, width // heads, by
        self.q, self.k, self.v = (nn.Linear(width, width, bias=bias) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, x):
        first = -1 if self.by == "head_dim" else 4 if self.by == "constant" else self.num_heads
        split = (*x.shape[:2], first, self.head_dim)
        q, k, v = (f(x).view(split).transpose(1, 2) for f in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.out(mixed.reshape(*x.shape[:2], -1))


class SharedKeys(Attention):
    """Two heads of queries read each head of keys and values."""

    def __init__(self, width=32, heads=4):
        super().__init__(width, heads)
        self.k, self.v = (nn.Linear(width, width // 2, bias=False) for _ in range(2))

    def forward(self, x):
        q = self.q(x).unflatten(2, (-1, self.head_dim)).transpose(1, 2)
        k, v = (self._twice(f(x)) for f in (self.k, self.v))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    def _twice(self, y):
        heads = y.unflatten(2, (-1, self.head_dim)).transpose(1, 2)
        return heads[:, :, None].expand(-1, -1, 2, -1, -1).reshape(len(y), -1, *heads.shape[2:])


class Block(nn.Module):
    """A transformer's: norm, attention, norm, feed-forward, each added to what goes by."""

    def __init__(self, width=32, attention=None):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = attention or Attention(width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class Residual(nn.Module):
    """A basic block of a ResNet between a stem and a head; no padding, kernels of one."""

    def __init__(self, channels=8):
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 1)
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 1) for _ in range(2))
        self.bn1, self.bn2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        self.head = nn.Linear(channels, 5)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return self.head(x.mean((2, 3)))


def mlp(*widths, bias=True, activation=nn.ReLU):
    layers = []
    for n, m in itertools.pairwise(widths):
        layers += [nn.Linear(n, m, bias=bias), activation()]
    return nn.Sequential(*layers[:-1])
