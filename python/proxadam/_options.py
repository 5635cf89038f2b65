"""What torch.optim.Adam says of its arguments, in its order and its words."""

from __future__ import annotations

from torch import Tensor

TENSOR_LR = "lr as a Tensor is not supported for capturable=False and foreach=True"


def check_adam_options(
    lr: float | Tensor,
    betas: tuple[float | Tensor, float | Tensor],
    eps: float,
    weight_decay: float,
    foreach: bool | None,
    capturable: bool,
) -> None:
    """Raise ValueError where torch.optim.Adam does, for the arguments that it has too."""
    listwise = foreach and not capturable
    if isinstance(lr, Tensor):
        if listwise:
            raise ValueError(TENSOR_LR)
        if lr.numel() != 1:
            raise ValueError("Tensor lr must be 1-element")
    if not lr >= 0.0:
        raise ValueError(f"Invalid learning rate: {lr}")
    if not eps >= 0.0:
        raise ValueError(f"Invalid epsilon value: {eps}")
    for i, beta in enumerate(betas):
        if isinstance(beta, Tensor) and beta.numel() != 1:
            raise ValueError(f"Tensor betas[{i}] must be 1-element")
        if not 0.0 <= beta < 1.0:
            raise ValueError(f"Invalid beta parameter at index {i}: {beta}")
    if not weight_decay >= 0.0:
        raise ValueError(f"Invalid weight_decay value: {weight_decay}")
    kinds = [float if isinstance(b, float) else Tensor for b in betas]
    if kinds[0] is not kinds[1] or not all(map(isinstance, betas, kinds)):
        raise ValueError("betas must be either both floats or both Tensors")
    for i, beta in enumerate(betas):
        if isinstance(beta, Tensor) and listwise:
            raise ValueError(
                f"betas[{i}] as a Tensor is not supported for capturable=False and foreach=True"
            )
