"""Cut, look again, and cut until nothing is left to cut."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from .calls import call, difference, module_by_module, outputs_of, random_like
from .dependencies import Graph
from .heads import dead_heads, tell
from .layers import fold, layers_of, width, zero_rows
from .plan import Cut, Plan
from .report import CompactReport, Kept, LayerRows

_SEEDS = (0, 1, 2)  # of the random inputs on which outputs are compared
_HEADS = "(heads) torch-pruning cuts an nn.MultiheadAttention by its embed_dim, not by its heads"


def compacted(model: nn.Module, inputs: Any, multiple_of: int) -> tuple[nn.Module, CompactReport]:
    """A copy of a model without what is dead, and what has been done to it.

    Raises:
        ValueError: the model cannot be understood, or its outputs would not be equal.
    """
    try:
        whole = copy.deepcopy(model).eval()
    except Exception as error:
        raise ValueError(
            "compact cuts a copy, and this model cannot be copied (make pruning masks permanent by"
            f" torch.nn.utils.prune.remove): {error}"
        ) from error
    everything = [inputs, *(random_like(inputs, seed) for seed in _SEEDS)]
    check = Check(everything, outputs_of(whole, everything))
    if check.failure(whole):
        raise ValueError(
            "compact compares outputs, and those of this model in eval mode differ from call to"
            " call: give its random numbers a fixed seed, or leave them out in eval mode."
        )
    cutter = Cutter(whole, inputs, multiple_of, check)
    cutter.cut_all()
    found = check.failure(cutter.model)
    if found:
        raise ValueError(
            f"the outputs without the dead rows are not those of the model ({found}), which"
            " depends on a width that compact does not see; nothing is cut."
        )
    rows = (
        LayerRows(name, width(layer), tuple(zero_rows(layer)), cutter.gone(name, width(layer)))
        for name, layer in layers_of(whole).items()
    )
    report = CompactReport(
        tuple(one for one in rows if one.dead or one.cut),
        (*cutter.kept, *(Kept(n, tuple(h), _HEADS) for n, h in dead_heads(whole).items())),
        (_parameters(whole), _parameters(cutter.model)),
        (_macs(whole, inputs), _macs(cutter.model, inputs)),
    )
    return cutter.model, report


class Check:
    """What a model is to put out.

    Args:
        inputs: some inputs.
        outputs: the tensors that it puts out for each of them.
    """

    def __init__(self, inputs: list[Any], outputs: list[list[Tensor]]) -> None:
        self._inputs, self._outputs = inputs, outputs

    def failure(self, model: nn.Module, only_call: bool = False) -> str | None:
        """How a model fails to put that out, in half a sentence; None where it does not.

        Args:
            model: in eval mode.
            only_call: do not compare, just see whether it can be called.
        """
        try:
            got = outputs_of(model, self._inputs[:1] if only_call else self._inputs)
        except Exception as error:
            return f"{type(error).__name__}: {error}".splitlines()[0]
        return None if only_call else difference(self._outputs, got)


class Cutter:
    """Cuts copies of a model.

    Args:
        model: in eval mode; stays as it is.
        inputs: see :func:`.calls.call`.
        multiple_of: see :class:`.plan.Plan`.
        check: what the model puts out.

    Attributes:
        model: the last copy.
        kept: what is dead and stays, by its place in the first one.
    """

    def __init__(self, model: nn.Module, inputs: Any, multiple_of: int, check: Check) -> None:
        self.model = copy.deepcopy(model)
        self.kept: list[Kept] = []
        self._inputs, self._multiple_of, self._check = inputs, multiple_of, check
        self._left = {name: [*range(width(layer))] for name, layer in layers_of(model).items()}
        self._refused: dict[str, str] = {}

    def cut_all(self) -> None:
        """Cut until nothing is left to cut."""
        trained = {name: param.requires_grad for name, param in self.model.named_parameters()}
        for param in self.model.parameters():
            param.requires_grad_(param.is_floating_point() or param.is_complex())
        while True:
            plan = Plan(self.model, self._inputs, self._multiple_of, self._refused)
            if not plan.cuts:
                break
            self._cut_some(plan.cuts)
        for name, param in self.model.named_parameters():
            # A bias that folding has made is trained as the weight is.
            weight = f"{name.rpartition('.')[0]}.weight".removeprefix(".")
            param.requires_grad_(trained[name] if name in trained else trained[weight])
        self.kept = [
            Kept(one.name, tuple(self._left[one.name][i] for i in one.rows), one.reason)
            for one in plan.kept
        ]

    def gone(self, name: str, count: int) -> tuple[int, ...]:
        """The rows that a layer has lost, of as many."""
        left = set(self._left[name])
        return tuple(i for i in range(count) if i not in left)

    def _cut_some(self, cuts: Sequence[Cut]) -> None:
        """Make all cuts, or one, or refuse those that the model's forward cannot bear."""
        if self._try(cuts) is None:
            return
        for cut in cuts:
            reason = self._try([cut])
            if reason is None:
                return
            self._refused[cut.layer] = f"the model cannot do without it ({reason})"

    def _try(self, cuts: Sequence[Cut]) -> str | None:
        """Make these cuts in a copy, and keep it unless it fails."""
        trial = copy.deepcopy(self.model)
        try:
            self._make(trial, cuts)
        except Exception as error:  # of the library
            return f"{type(error).__name__}: {error}".splitlines()[0]
        # How a forward takes the number of heads is its own affair: there outputs must tell.
        reason = self._check.failure(trial, only_call=not any(cut.head for cut in cuts))
        if reason is None:
            self.model = trial
            for cut in cuts:
                for name, rows in cut.writers.items():
                    gone = set(rows)
                    self._left[name] = [
                        row for i, row in enumerate(self._left[name]) if i not in gone
                    ]
        return reason

    def _make(self, trial: nn.Module, cuts: Sequence[Cut]) -> None:
        """Fold, cut and tell how many heads are left."""
        graph, layers = Graph(trial, self._inputs), layers_of(trial)
        for cut in cuts:
            before = width(layers[cut.layer])
            for name, fills in cut.readers.items():
                fold(layers[name], fills)
            graph.group(layers[cut.layer], cut.rows).prune()
            if cut.head:
                tell(trial, [*cut.writers], cut.head, before, width(layers[cut.layer]))


def _parameters(model: nn.Module) -> int:
    return sum(param.numel() for param in model.parameters())


def _macs(model: nn.Module, inputs: Any) -> int:
    with torch.no_grad(), module_by_module(), FlopCounterMode(display=False) as counter:
        call(model, inputs)
    return int(counter.get_total_flops()) // 2
