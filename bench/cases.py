"""What a case of bench/step.py is, and the tensors that its arms share."""

from __future__ import annotations

import functools
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.nn import Parameter, ParameterList
from torch.optim import Optimizer

from proxadam import ProxAdamW

LR, L1, L2, L21 = 1e-7, 1e-5, 1e-4, 1e-5
DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp64": torch.float64,
}
STATES = {"": None, "fp32": torch.float32, "bf16": torch.bfloat16, "8bit": "8bit"}
_MOMENT_BYTES = {"fp32": 4.0, "bf16": 2.0, "8bit": 1 + 1 / 256}


@dataclass(frozen=True)
class Case:
    """A list of parameters; ``slow`` adds the arms of torch's and our torch-op paths."""

    name: str
    shapes: list[tuple[int, ...]]
    dtype: str
    slow: bool = False
    host: bool = False  # what is timed is the work around the kernel
    sharded: bool = False  # by FSDP2, over one process: DTensors with nothing to wait for
    scaled: bool = False  # with the arms of GradScaler.step
    compiled: bool = False  # with the arms of torch.compile, on inductor
    state: str = ""  # how the moments are kept, where it is not as the parameters are
    by_chance: bool = False  # 16-bit parameters are rounded so
    rows: bool = False  # with an arm that takes rows as one
    device: str = "cpu"

    @property
    def label(self) -> str:
        """Name and dtypes, as goals refer to it."""
        return f"{self.name} {self.types}"

    @property
    def types(self) -> str:
        """How parameters and moments are stored."""
        kept = f", {self.state} state" if self.state else ""
        return self.dtype + kept + (", by chance" if self.by_chance else "")

    @property
    def options(self) -> dict[str, Any]:
        """What our optimizer is told about it."""
        return {
            "state_dtype": STATES[self.state],
            "stochastic_rounding": True if self.by_chance else None,
        }

    @property
    def small(self) -> bool:
        """Whether torch has no step over such tensors, so that another one's is beside ours."""
        return bool(self.state) or self.by_chance

    @property
    def numel(self) -> int:
        """Weights in all."""
        return sum(math.prod(shape) for shape in self.shapes)

    @property
    def step_bytes(self) -> int:
        """Counted bytes of a step: it reads four numbers a weight and writes three of them."""
        own = DTYPES[self.dtype].itemsize
        return round(self.numel * (3 * own + 4 * _MOMENT_BYTES.get(self.state, own)))


@dataclass(frozen=True)
class Goal:
    """``arm`` is at least ``least`` times as fast as ``base``; with ``bytes_``, moves bytes so."""

    case: str
    arm: str
    base: str
    least: float
    bytes_: bool = False

    @property
    def text(self) -> str:
        """What is compared, in words."""
        unit = "bytes/s" if self.bytes_ else "speed"
        return f"{self.case}: {unit} of {self.arm!r} ÷ {self.base!r}"


class Tensors:
    """The parameters of a case with gradients and state in mid-run, shared by all of its arms."""

    def __init__(self, case: Case) -> None:
        torch.manual_seed(0)
        dtype = DTYPES[case.dtype]
        state_dtype = torch.float32 if case.state else dtype
        on = {"device": case.device}
        self.params = [Parameter(torch.randn(shape, **on).to(dtype)) for shape in case.shapes]
        for param in self.params:
            param.grad = torch.randn(param.shape, **on).mul_(0.01).to(dtype)
        self.state = {
            param: {
                "step": torch.tensor(100.0),
                "exp_avg": torch.randn(param.shape, **on).mul_(0.01).to(state_dtype),
                "exp_avg_sq": torch.rand(param.shape, **on).add_(0.1).mul_(1e-4).to(state_dtype),
            }
            for param in self.params
        }
        self.device = case.device
        if case.sharded:
            self._shard()
        if case.small:
            self._keep(case.options)

    def _keep(self, options: dict[str, Any]) -> None:
        """Take the state as our optimizer keeps it."""
        optimizer = ProxAdamW(self.params, **options)
        states = dict(enumerate(self.state.values()))
        optimizer.load_state_dict({**optimizer.state_dict(), "state": states})
        self.state = dict(optimizer.state)

    def _shard(self) -> None:
        from torch.distributed.fsdp import fully_shard
        from torch.distributed.tensor import distribute_tensor

        whole, mesh = self.params, _mesh_of_one()
        self.params = list(fully_shard(ParameterList(whole), mesh=mesh).parameters())
        shard = functools.partial(distribute_tensor, device_mesh=mesh)
        states = [self.state[param] for param in whole]
        self.state = {}
        for param, old, state in zip(self.params, whole, states, strict=True):
            param.grad = shard(old.grad, placements=param.placements)
            moments = {k: shard(state[k], placements=param.placements) for k in list(state)[1:]}
            self.state[param] = {"step": state["step"], **moments}

    def optimizer(self, cls: type[Optimizer], **options: object) -> Optimizer:
        """An optimizer over these tensors, its state set to the shared one."""
        optimizer = cls(self.params, **{"lr": LR, **options})  # type: ignore[arg-type]
        on_device = options.get("fused") or options.get("capturable")
        for param, state in self.state.items():
            step_t = state["step"].to(self.device) if on_device else state["step"]
            optimizer.state[param] = {**state, "step": step_t}
        return optimizer

    def softshrink(self) -> None:
        """The cheapest separate L1 step torch has: one pass, in place."""
        for param in self.params:
            torch._C._nn.softshrink(param.data, LR * L1, out=param.data)

    def scale(self) -> None:
        """The ceiling: one array read and written."""
        for param in self.params:
            param.data.mul_(1.0)


@functools.cache
def _mesh_of_one() -> DeviceMesh:
    """The devices of a distributed run that has this process alone."""
    meeting = Path(tempfile.mkdtemp()) / "meeting"
    torch.distributed.init_process_group("gloo", f"file://{meeting}", rank=0, world_size=1)
    return init_device_mesh("cpu", (1,))
