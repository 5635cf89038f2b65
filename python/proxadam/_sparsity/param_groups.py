"""Split a model's parameters into those that are penalised and those that are left alone."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

__all__ = ["param_groups"]

# A shell-style pattern of names, or a type of module.
Rule: TypeAlias = str | type[nn.Module]

_NORMS_AND_EMBEDDINGS: tuple[Rule, ...] = (
    nn.modules.batchnorm._NormBase,  # every BatchNorm and InstanceNorm
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.Embedding,
    nn.EmbeddingBag,
)


def param_groups(
    model: nn.Module,
    *,
    l1: float | Tensor,
    l2: float | Tensor | None = None,
    l21: float | Tensor | None = None,
    weight_decay: float | None = None,
    exclude: Rule | Iterable[Rule] = (),
    include: Rule | Iterable[Rule] = (),
    named: bool = False,
) -> list[dict[str, Any]]:
    """Group a model's parameters, so that biases, norms and embeddings are not penalised.

    Left alone, with no penalty and no decay, are: parameters with fewer than two dimensions
    (biases, and the scales of norms of any type); parameters with "bias" in the last part of their
    name; everything inside a norm or an embedding of torch.nn. All others are penalised, in modules
    of any type, and as bare ``nn.Parameter`` too: name a bare positional embedding in ``exclude``.

    A rule is a shell-style pattern, compared with the full name of a parameter and of the modules
    it is in ("lm_head", "*.attention.*"), or a type of module, which means all parameters inside.
    A weight that is used in several places appears once, and is left alone if it is in any of them:
    a head tied to an embedding is an embedding. Frozen parameters (``requires_grad=False``) appear
    in no group; give them to ``optimizer.add_param_group`` when they thaw.

    Args:
        model: its parameters, on any device.
        l1: of the penalised group; a float or a one-element tensor.
        l2: of the penalised group; None leaves it to the optimizer. (default: None)
        l21: of the penalised group; None leaves it to the optimizer. The rows of a model's last
            layer are its outputs: name that in ``exclude``. (default: None)
        weight_decay: of the penalised group; None leaves it to the optimizer. (default: None)
        exclude: one or several rules: what else to leave alone; it wins. (default: none)
        include: likewise, what to penalise all the same, such as ``nn.Embedding``. (default: none)
        named: list (name, parameter) pairs, as ``model.named_parameters()`` does; the optimizer
            then keeps the names in ``param_names``. (default: False)

    Returns:
        The group that is penalised and, unless it would be empty, the one that is not, each a dict
        for ProxAdam or ProxAdamW, which check the values.

    Raises:
        ValueError: a rule that fits no parameter; nothing to penalise; a lazy module that has not
            seen its first batch.
        TypeError: a rule that is neither a string nor a type of module.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4))
        >>> penalised, others = param_groups(model, l1=1e-5)
        >>> [tuple(p.shape) for p in penalised["params"]], penalised["l1"], others["l1"]
        ([(4, 4)], 1e-05, 0.0)
        >>> optimizer = ProxAdamW([penalised, others], lr=1e-3)
    """
    names: dict[nn.Parameter, list[str]] = {}
    for name, param in model.named_parameters(remove_duplicate=False):
        names.setdefault(param, []).append(name)
    excluded, included = _matched(model, exclude, "exclude"), _matched(model, include, "include")
    special = {param for rule in _NORMS_AND_EMBEDDINGS for param in _matched_by(model, rule)}
    penalised: list[Any] = []
    unpenalised: list[Any] = []
    for param, aliases in names.items():
        if is_lazy(param):
            raise ValueError(
                f"{aliases[0]} has no shape yet; run one batch through the model before its"
                " parameters are grouped."
            )
        if not param.requires_grad:
            continue
        biased = any("bias" in name.rpartition(".")[2] for name in aliases)
        plain = param.ndim > 1 and param not in special and not biased
        chosen = param not in excluded and (plain or param in included)
        (penalised if chosen else unpenalised).append((aliases[0], param) if named else param)
    if not penalised:
        raise ValueError(
            f"expected a parameter to penalise, got {len(unpenalised)} trainable ones that are all"
            " biases, norms, embeddings, flat or excluded; name some in include."
        )
    options = {"l1": l1, "l2": l2, "l21": l21, "weight_decay": weight_decay}
    groups: list[dict[str, Any]] = [
        {"params": penalised} | {k: v for k, v in options.items() if v is not None}
    ]
    if unpenalised:
        none = dict.fromkeys(("l1", "l2", "l21", "weight_decay"), 0.0)
        groups.append({"params": unpenalised, **none})
    return groups


def _matched(model: nn.Module, rules: Rule | Iterable[Rule], argument: str) -> set[nn.Parameter]:
    """The parameters that match any of the rules; each rule must match some."""
    if isinstance(rules, str | type):  # a lone rule; a string would be taken letter by letter
        rules = (rules,)
    matched: set[nn.Parameter] = set()
    for rule in rules:
        params = _matched_by(model, rule)
        if not params:
            shown = repr(rule) if isinstance(rule, str) else rule.__name__
            some = ", ".join(name for name, _ in [*model.named_parameters()][:3])
            raise ValueError(
                f"{argument} rule {shown} fits no parameter; expected a pattern of full names"
                f" such as {some}, or a type of module that is in the model."
            )
        matched |= params
    return matched


def _matched_by(model: nn.Module, rule: Rule) -> set[nn.Parameter]:
    if isinstance(rule, str):
        # The second pattern lets the name of a module stand for all that is in it.
        patterns = (rule, f"{rule}.*")
        named = model.named_parameters(remove_duplicate=False)
        return {param for name, param in named if any(fnmatchcase(name, p) for p in patterns)}
    if isinstance(rule, type) and issubclass(rule, nn.Module):
        return {p for m in model.modules() if isinstance(m, rule) for p in m.parameters()}
    raise TypeError(f"expected a pattern or a type of nn.Module as a rule, got {rule!r}")
