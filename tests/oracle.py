"""The step in float64, written from its equations and from nothing in the package.

One function, one step, NumPy arrays in and out. Where ``proxadam`` and this file differ beyond
``storages.py`` allows, one of them is wrong.
"""

from __future__ import annotations

import numpy as np


def oracle_step(
    param,
    grad,
    exp_avg,
    exp_avg_sq,
    max_exp_avg_sq,
    step,
    *,
    lr=1e-3,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=0.0,
    amsgrad=False,
    l1=0.0,
    l2=0.0,
    l21=0.0,
    l1_knee=np.inf,
    metric="adaptive",
    max_shrink=10.0,
    keep_zeros=False,
    decoupled_weight_decay=False,
    maximize=False,
):
    """Return (param, exp_avg, exp_avg_sq, max_exp_avg_sq, scale) after step number ``step``.

    ``scale`` is what an error of the new param is measured against: the larger of the old and the
    new weight and of the length of the Adam step, which cancellation can make the larger one; and
    with l21 the weight before it, for near the border of a row's death that is what is divided.
    """
    w, g, m, v = (np.asarray(x, dtype=np.float64) for x in (param, grad, exp_avg, exp_avg_sq))
    beta1, beta2 = betas
    g = -g if maximize else g
    if decoupled_weight_decay:
        decayed = (1 - lr * weight_decay) * w
    else:
        decayed = w
        g = g + weight_decay * w
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    largest = np.maximum(max_exp_avg_sq, v) if amsgrad else None
    m_hat = m / (1 - beta1**step)
    v_hat = (largest if amsgrad else v) / (1 - beta2**step)
    d = np.sqrt(v_hat) + eps
    z = decayed - lr * m_hat / d
    new = z
    pulled = np.abs(z)
    if (l1 or l2 or l21) and lr:
        per_coordinate = lr / d if metric == "adaptive" else np.full_like(d, lr)
        threshold = per_coordinate * l1 / (1 + np.abs(w) / l1_knee)
        survives = np.abs(z) > threshold
        soft = np.where(survives | np.isnan(z), np.sign(z) * (np.abs(z) - threshold), 0.0)
        shrunk = soft / (1 + per_coordinate * l2)
        if l21 and w.ndim > 1 and w.size:
            shrunk = np.where(w == 0, 0.0, shrunk) if keep_zeros else shrunk
            pulled = np.abs(shrunk)
            strength = l21 * np.sqrt(w[0].size)
            pull = per_coordinate * strength / (1 + per_coordinate * l2)
            shrunk = group_prox(shrunk.reshape(len(w), -1), pull.reshape(len(w), -1))
            shrunk = shrunk.reshape(w.shape)
        reach = max_shrink * lr
        new = np.minimum(np.maximum(shrunk, z - reach), z + reach)
    if keep_zeros and lr:
        new = np.where(w == 0, 0.0, new)
    scale = np.maximum.reduce([np.abs(w), np.abs(new), lr * np.maximum(1, np.abs(m_hat) / d)])
    if l21:
        scale = np.maximum(scale, pulled)
    return new, m, v, largest, scale


def group_prox(shrunk, pull):
    """The rows c · θ / (θ + b), with θ = ‖row‖ by bisection, and 0 where ‖c / b‖ ≤ 1.

    Args:
        shrunk: c, the elementwise prox, by rows.
        pull: b, of the same shape, above 0.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        dead = np.square(shrunk / pull).sum(1) <= 1
        low, high = np.zeros(len(shrunk)), np.sqrt(np.square(shrunk).sum(1))
        for _ in range(160):
            middle = low + (high - low) / 2
            above = np.square(shrunk / (middle[:, None] + pull)).sum(1) >= 1
            low, high = np.where(above, middle, low), np.where(above, high, middle)
        norm = (low + (high - low) / 2)[:, None]
        return np.where(dead[:, None], 0.0, shrunk * (norm / (norm + pull)))
