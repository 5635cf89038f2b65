"""All that torch-pruning is asked: which rows and columns belong together, and to cut them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .calls import call, module_by_module, output_tensors
from .layers import Layer


def torch_pruning() -> Any:
    """The library.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import torch_pruning
    except ImportError as error:
        raise ImportError(
            "compact traces and cuts with torch-pruning, which is not installed: "
            "pip install 'proxadam[compact]'"
        ) from error
    return torch_pruning


class Ungroupable(Exception):
    """The library does not say what goes with some rows; the message is why, in half a sentence."""


@dataclass(frozen=True)
class Member:
    """What of one module or parameter goes with the rows of a group's first layer.

    Attributes:
        name: of the module or parameter; empty for an operation that has neither.
        module: a layer, a norm, a parameter, or the library's stand-in for an operation.
        indices: its rows or columns.
        roots: for each of them, the row of the group's first layer; None where it is not known.
        has_rows: they are outputs.
        has_columns: they are inputs. With both, its channels pass through one by one.
    """

    name: str
    module: Any
    indices: list[int]
    roots: list[Any]
    has_rows: bool
    has_columns: bool


@dataclass(frozen=True)
class Group:
    """Rows of a layer, and all that can only be cut together with them."""

    root: Member
    members: list[Member]
    _pruned: Any

    def prune(self) -> None:
        """Let the library cut."""
        self._pruned.prune(record_history=False)


class Graph:
    """The library's dependency graph of a model, whose parameters all require grad.

    Args:
        model: in eval mode.
        inputs: see :func:`.calls.call`.

    Raises:
        ValueError: the library cannot trace the model.
    """

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        pruning = torch_pruning()
        self._graph = pruning.DependencyGraph()
        try:
            with torch.enable_grad(), module_by_module():
                self._graph.build_dependency(
                    model, inputs, forward_fn=call, output_transform=_traceable, verbose=False
                )
        except Exception as error:
            raise ValueError(
                "torch-pruning cannot trace this model, so nothing of it can be cut: "
                f"{type(error).__name__}: {error}"
            ) from error
        self._steps_left = 0
        self._bound_search()
        self._names: dict[Any, str] = {module: name for name, module in model.named_modules()}
        self._names |= {param: name for name, param in model.named_parameters()}

    def __contains__(self, layer: nn.Module) -> bool:
        return layer in self._graph.module2node

    def group(self, layer: Layer, rows: Sequence[int]) -> Group:
        """What goes with these rows of a layer.

        Raises:
            Ungroupable: the library does not find out.
        """
        self._steps_left = self._steps
        try:
            prune_rows = self._graph.get_pruner_of_module(layer).prune_out_channels
            pruned = self._graph.get_pruning_group(layer, prune_rows, list(rows))
        except Exception as error:
            message = f"torch-pruning cannot say what goes with it ({error})"
            raise Ungroupable(message.splitlines()[0]) from error
        members: dict[tuple[int, bool, bool], Member] = {}
        for item in pruned.items:
            member = self._member(item)
            key = (id(member.module), member.has_rows, member.has_columns)
            if key in members:
                members[key].indices.extend(member.indices)
                members[key].roots.extend(member.roots)
            else:
                members[key] = member
        root, *_ = members.values()
        return Group(root, list(members.values()), pruned)

    def _bound_search(self) -> None:
        """Let the library's search for what goes together end.

        Where indices come back shifted each time, as with heads of queries that share those of
        keys, it would go on for ever.
        """
        dependencies = [
            one for node in self._graph.module2node.values() for one in node.dependencies
        ]
        self._steps = 1000 + 20 * len(dependencies)

        def counted(is_triggered_by: Callable[[Any], bool]) -> Callable[[Any], bool]:
            def ask(prune: Any) -> bool:
                self._steps_left -= 1
                if self._steps_left < 0:
                    raise RecursionError("its search does not end")
                return is_triggered_by(prune)

            return ask

        for one in dependencies:
            one.is_triggered_by = counted(one.is_triggered_by)

    def _member(self, item: Any) -> Member:
        module, handler = item.dep.target.module, item.dep.handler
        return Member(
            self._names.get(module, ""),
            module,
            [int(i) for i in item.idxs],
            list(item.root_idxs),
            self._graph.is_out_channel_pruning_fn(handler),
            self._graph.is_in_channel_pruning_fn(handler),
        )


def _traceable(output: Any) -> list[Tensor]:
    traceable = [one for one in output_tensors(output) if one.grad_fn is not None]
    if not traceable:
        raise TypeError("no output depends on a parameter through autograd")
    return traceable
