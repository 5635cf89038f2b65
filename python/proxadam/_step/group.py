"""One parameter group on its way through a step: parallel lists of tensors, and the options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from .options import Options

# What messages call an entry of each list: "the gradient of parameter 0 of shape (2, 3)".
LISTS = {
    "params": "data",
    "grads": "gradient",
    "exp_avgs": "exp_avg",
    "exp_avg_sqs": "exp_avg_sq",
    "max_exp_avg_sqs": "max_exp_avg_sq",
    "state_steps": "step",
}


@dataclass(slots=True)
class Group:
    """The arguments of one :func:`proxadam.prox_adam` call.

    ``max_exp_avg_sqs`` is empty unless ``amsgrad``; the other lists have one entry a parameter.
    The native modules read these attributes by name.
    """

    params: list[Tensor]
    grads: list[Tensor]
    exp_avgs: list[Tensor]
    exp_avg_sqs: list[Tensor]
    max_exp_avg_sqs: list[Tensor]
    state_steps: list[Tensor]
    options: Options

    def check(self) -> None:
        """Raise where an option is out of range, or the lists differ in length.

        Raises:
            TypeError, ValueError, RuntimeError: see :meth:`Options.check`.
        """
        count = len(self.params)
        for name in LISTS:
            tensors = getattr(self, name)
            if len(tensors) != count and (self.options.amsgrad or name != "max_exp_avg_sqs"):
                raise ValueError(
                    f"expected a gradient, moments and a step for each of {count}"
                    f" params, got a list of {len(tensors)}"
                )
        self.options.check()
        if self.params:
            self.options.check_listwise()

    def name(self, index: int) -> str:
        """What messages call a parameter, such as "parameter 0 of shape (2, 3)"."""
        param = self.params[index]
        shape = "" if param.is_nested else f" of shape {tuple(param.shape)}"
        return f"parameter {index}{shape}"

    def lists(self) -> dict[str, list[Tensor]]:
        """The lists by their names, without ``max_exp_avg_sqs`` where there are none."""
        lists = {name: getattr(self, name) for name in LISTS}
        if not self.options.amsgrad:
            del lists["max_exp_avg_sqs"]
        return lists

    def of(self, index: int) -> dict[str, Tensor]:
        """The tensors of one parameter, by the names of their lists."""
        return {name: tensors[index] for name, tensors in self.lists().items()}

    def take(self, indices: Sequence[int]) -> Group:
        """The same options over some of the parameters."""
        lists = {name: [tensors[i] for i in indices] for name, tensors in self.lists().items()}
        return Group(**{"max_exp_avg_sqs": [], **lists}, options=self.options)
