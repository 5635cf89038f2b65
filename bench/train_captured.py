"""Train a small language model on a GPU with AdamW and with ProxAdamW, every iteration captured.

Forward pass in bfloat16, backward pass and step are one CUDA graph. The text is the source code of
Python's own standard library, byte by byte. Every arm starts from the same weights and sees the
same batches. Biases, norms and embeddings are left alone by L1.

    python bench/train_captured.py --json bench/results/NAME.json    # a minute on an H100
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import sysconfig
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from torch.optim import AdamW, Optimizer
from tqdm import tqdm

from command_line import command
from harness import machine
from proxadam import ProxAdamW, param_groups, sparsity

LAYERS, WIDTH, HEADS, CONTEXT, BATCH = 6, 512, 8, 256, 64
LR, WEIGHT_DECAY = 1e-3, 1e-2
ADAMW = "AdamW(fused=True)"


class Block(nn.Module):
    """Attention to what came before, and a layer with GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.wide, self.narrow = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        heads = self.qkv(self.norms[0](x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        attended = scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.narrow(nn.functional.gelu(self.wide(self.norms[1](x))))


class Model(nn.Module):
    """Bytes in, the logits of the next ones out."""

    def __init__(self) -> None:
        super().__init__()
        self.byte, self.place = nn.Embedding(256, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 256)

    def forward(self, tokens: Tensor) -> Tensor:  # noqa: D102
        x = self.byte(tokens) + self.place.weight
        return self.head(self.norm(self.blocks(x)))


def text() -> tuple[Tensor, Tensor]:
    """The bytes to train on, and those to validate on: every tenth file."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    held_out = files[::10]
    train, validation = (
        bytearray(b"".join(file.read_bytes() for file in some))
        for some in ([file for file in files if file not in held_out], held_out)
    )
    return tuple(torch.frombuffer(part, dtype=torch.uint8).cuda() for part in (train, validation))


def windows(data: Tensor, generator: torch.Generator) -> Tensor:
    """A batch of windows, one byte longer than the context."""
    begins = torch.randint(len(data) - CONTEXT - 1, (BATCH, 1), generator=generator, device="cuda")
    return data[begins + torch.arange(CONTEXT + 1, device="cuda")].long()


def loss_of(model: nn.Module, batch: Tensor) -> Tensor:
    """Nats a byte."""
    with torch.autocast("cuda", torch.bfloat16):
        logits = model(batch[:, :-1])
    return cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())


def make(l1: float | None, model: nn.Module) -> Optimizer:
    """Torch's optimizer where there is no ``l1``, and ours."""
    if l1 is None:
        groups = param_groups(model, l1=0.0, l2=0.0, weight_decay=WEIGHT_DECAY)
        groups = [{k: v for k, v in g.items() if k not in ("l1", "l2")} for g in groups]
        return AdamW(groups, lr=LR, capturable=True, fused=True)
    groups = param_groups(model, l1=l1, weight_decay=WEIGHT_DECAY)
    return ProxAdamW(groups, lr=LR, capturable=True, fused=True)


def train(
    name: str, l1: float | None, data: tuple[Tensor, Tensor], steps: int
) -> dict[str, object]:
    """One arm."""
    torch.manual_seed(0)
    model = Model().cuda()
    optimizer = make(l1, model)
    batches = torch.Generator("cuda").manual_seed(1)
    batch = windows(data[0], batches)

    def iteration() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(model, batch)
        loss.backward()
        optimizer.step()
        return loss.detach()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # warm up as a capture wants it, and count these steps
        for _ in range(3):
            iteration()
    torch.cuda.current_stream().wait_stream(side)
    graph, step_graph = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = iteration()

    losses, milliseconds = [], []
    for _ in tqdm(range(steps), desc=name, leave=False, disable=None):
        batch.copy_(windows(data[0], batches))
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        events[0].record()
        graph.replay()
        events[1].record()
        losses.append(loss.clone())
        milliseconds.append(events)
    torch.cuda.synchronize()
    model.eval()
    with torch.no_grad():
        held_out = torch.Generator("cuda").manual_seed(2)
        validation = statistics.mean(
            float(loss_of(model, windows(data[1], held_out))) for _ in range(20)
        )
    zeros = float(sparsity(model))
    penalised = [p for g in optimizer.param_groups if g.get("l1") for p in g["params"]]
    with torch.cuda.graph(step_graph):  # the step alone, on the last gradients
        optimizer.step()
    curve = torch.stack(losses).cpu()
    return {
        "arm": name,
        "l1": l1,
        "weights": sum(p.numel() for p in model.parameters()),
        "penalised": sum(p.numel() for p in penalised),
        "zeros": zeros,
        "train_loss": float(curve[-50:].mean()),
        "validation_loss": validation,
        "iteration_ms": statistics.median(a.elapsed_time(b) for a, b in milliseconds),
        "step_ms": _replayed(step_graph),
        "curve": [round(float(x), 4) for x in curve[::10]],
    }


def _replayed(graph: torch.cuda.CUDAGraph, times: int = 50) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    graph.replay()
    begin.record()
    for _ in range(times):
        graph.replay()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / times


def main() -> None:
    """Train all arms; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--json", type=Path, help="write everything to this file")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("skipped: no device")
    about = machine() | {"command": command()}
    data = text()
    arms: dict[str, float | None] = {ADAMW: None, "AdamW again": None}
    arms |= {f"ProxAdamW, l1={l1:g}": l1 for l1 in (0.0, 1e-6, 3e-6, 1e-5, 3e-5)}
    found = []
    print(f"{'':24}{'train':>8}{'held out':>10}{'zeros':>8}{'iteration':>12}{'step':>10}")
    for name, l1 in arms.items():
        row = train(name, l1, data, args.steps)
        found.append(row)
        print(
            f"{name:24}{row['train_loss']:8.4f}{row['validation_loss']:10.4f}{row['zeros']:8.1%}"
            f"{row['iteration_ms']:9.3f} ms{row['step_ms']:7.3f} ms",
            flush=True,
        )
        if args.json:
            args.json.write_text(json.dumps({"machine": about, "arms": found}, indent=1))


if __name__ == "__main__":
    main()
