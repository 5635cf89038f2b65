"""Trainers that people use, in the versions that are installed: ours in the place of AdamW.

Each trains the same small network on the same batches, with a schedule and clipped gradients.
"""

from __future__ import annotations

import functools
import sys

import pytest
import torch
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader

from formats import SMALL, each_format
from proxadam import ProxAdamW, backends
from tools import LOOP, assert_same_bits, error_of, snapshot, threads

pytestmark = [
    pytest.mark.integrations,
    # Lightning 2.6 asks torch 2.13 about trees in a way that torch is giving up.
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.*:FutureWarning"),
    # They train on the CPU, and Lightning would rather use a GPU.
    pytest.mark.filterwarnings("ignore:GPU available but not used"),
]
STEPS = 8
CLIP = 0.05
L1 = {"l1": 0.002}  # well below the gradients as they are clipped
WIDTH = 17
WIDE = 512  # takes codes


@pytest.fixture(autouse=True)
def _one_thread():
    with threads(1):
        yield


class Net(nn.Module):
    """Takes and returns what Hugging Face's Trainer wants of a model."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Linear(9, WIDTH), nn.LayerNorm(WIDTH), nn.Tanh(), nn.Linear(WIDTH, 3)
        )

    def forward(self, inputs, labels):
        outputs = self.body(inputs)
        return {"loss": (outputs - labels).square().mean(), "logits": outputs}


def data():
    generator = torch.Generator().manual_seed(1)
    inputs, labels = (torch.randn(STEPS * 4, n, generator=generator) for n in (9, 3))
    return [{"inputs": x, "labels": y} for x, y in zip(inputs, labels, strict=True)]


def schedule(optimizer):
    """Moves betas[0] as well."""
    return OneCycleLR(optimizer, 0.05, total_steps=STEPS + 1)


# ---- the trainers: each returns the optimizer that it has trained with ------------------------


def hugging_face(make, folder, *, by_class, resume=False):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("accelerate", reason="accelerate, which Trainer needs, is not installed")
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=4,
        max_grad_norm=CLIP,
        learning_rate=0.02,
        weight_decay=0.1,
        warmup_steps=2,
        lr_scheduler_type="cosine",
        save_steps=STEPS // 2,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    model = Net()
    if by_class:
        given = {"optimizer_cls_and_kwargs": (make.func, {"lr": 0.02, **make.keywords})}
    else:
        optimizer = make(model.parameters(), lr=0.02)
        given = {"optimizers": (optimizer, schedule(optimizer))}
    trainer = transformers.Trainer(model, arguments, train_dataset=data(), **given)
    trainer.train(
        resume_from_checkpoint=str(folder / f"checkpoint-{STEPS // 2}") if resume else None
    )
    if by_class:  # no decay for biases and norms
        assert [group["weight_decay"] for group in trainer.optimizer.param_groups] == [0.1, 0.0]
    return trainer.optimizer.optimizer  # in an AcceleratedOptimizer


def accelerated(make, folder, *, resume=False):
    """Gradients of two batches are accumulated for a step."""
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = Net()
    optimizer = make(model.parameters(), lr=0.02)
    loader = DataLoader(data(), 2)
    model, wrapped, loader, scheduler = accelerator.prepare(
        model, optimizer, loader, schedule(optimizer)
    )
    if resume:
        accelerator.load_state(folder)
        loader = accelerator.skip_first_batches(loader, STEPS)
    for i, batch in enumerate(loader):
        if i == STEPS and not resume:
            accelerator.save_state(folder)
        with accelerator.accumulate(model):
            accelerator.backward(model(**batch)["loss"])
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), CLIP)
            wrapped.step()
            scheduler.step()
            wrapped.zero_grad()
    return optimizer


def lightning_(make, folder, *, manual, resume=False, **options):
    lightning = pytest.importorskip("lightning", reason="lightning is not installed")

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()
            self.automatic_optimization = not manual

        def training_step(self, batch, _):
            loss = self.net(**batch)["loss"]
            if manual:
                optimizer = self.optimizers()
                optimizer.zero_grad()
                self.manual_backward(loss)
                self.clip_gradients(optimizer, CLIP, "norm")
                optimizer.step()
                self.lr_schedulers().step()
            return loss

        def configure_optimizers(self):
            optimizer = make(self.parameters(), lr=0.02)
            return [optimizer], [{"scheduler": schedule(optimizer), "interval": "step"}]

    # two epochs, for a checkpoint between them
    trainer = functools.partial(
        lightning.Trainer,
        accelerator="cpu",
        devices=1,
        gradient_clip_val=None if manual else CLIP,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_train_batches=STEPS // 2,
        default_root_dir=folder,
        **options,
    )
    module, loader = Module(), DataLoader(data(), 4)
    if resume:
        first = trainer(max_epochs=1)
        first.fit(Module(), loader)
        first.save_checkpoint(folder / "half.ckpt")
    last = trainer(max_epochs=2)
    last.fit(module, loader, ckpt_path=folder / "half.ckpt" if resume else None)
    return last.optimizers[0]


TRAINERS = {
    "Trainer-optimizers": functools.partial(hugging_face, by_class=False),
    "Trainer-class": functools.partial(hugging_face, by_class=True),
    "Accelerate": accelerated,
    "Lightning-automatic": functools.partial(lightning_, manual=False),
    "Lightning-manual": functools.partial(lightning_, manual=True),
}
each_trainer = pytest.mark.parametrize("train", TRAINERS.values(), ids=TRAINERS.keys())


def share_of_zeros(optimizer):
    flat = torch.cat([p.detach().flatten() for g in optimizer.param_groups for p in g["params"]])
    return (flat == 0).float().mean().item()


# ---- tests ------------------------------------------------------------------------------------


@each_trainer
def test_trains_as_adamw(train, tmp_path):
    ours = train(functools.partial(ProxAdamW, **LOOP), tmp_path)
    theirs = train(functools.partial(AdamW, **LOOP), tmp_path)
    assert type(ours) is ProxAdamW
    assert type(theirs) is AdamW
    assert {state["step"].item() for state in ours.state.values()} == {float(STEPS)}
    assert_same_bits(snapshot(ours), snapshot(theirs))
    assert share_of_zeros(theirs) == 0


@pytest.mark.skipif(backends.kernel("cpu") is None, reason=str(backends.reason_for_fallback("cpu")))
@each_trainer
def test_the_kernel_trains_as_adamw(train, tmp_path):
    ours = train(functools.partial(ProxAdamW, fused=True), tmp_path)
    theirs = train(functools.partial(AdamW, fused=True), tmp_path)
    torch.testing.assert_close(snapshot(ours), snapshot(theirs), rtol=1e-4, atol=1e-6)


@each_trainer
def test_l1_makes_exact_zeros(train, tmp_path):
    optimizer = train(functools.partial(ProxAdamW, **L1), tmp_path)
    assert 0.05 < share_of_zeros(optimizer) < 0.95


@each_trainer
def test_a_resumed_run_goes_on(train, tmp_path):
    whole = train(functools.partial(ProxAdamW, **L1, amsgrad=True), tmp_path)
    resumed = train(functools.partial(ProxAdamW, **L1, amsgrad=True), tmp_path, resume=True)
    assert_same_bits(snapshot(resumed), snapshot(whole))
    assert resumed.param_groups[0]["l1"] == L1["l1"]


@each_trainer
@each_format(SMALL)
def test_a_resumed_run_goes_on_in_each_format(train, tmp_path, kept, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "WIDTH", WIDE)
    make = functools.partial(ProxAdamW, l1=2e-4, **kept.options)
    whole = train(make, tmp_path)
    resumed = train(make, tmp_path, resume=True)
    assert_same_bits(snapshot(resumed), snapshot(whole))
    assert 0.05 < share_of_zeros(whole) < 0.95
    dtypes = {t.dtype for own in whole.state.values() for n, t in own.items() if n[:7] == "exp_avg"}
    assert kept.moments in dtypes


def test_lightning_clips_under_mixed_precision(tmp_path):
    """It refuses to where the optimizer says that it unscales by itself, as fused=True does."""
    train = functools.partial(lightning_, manual=False, precision="bf16-mixed")
    optimizer = train(functools.partial(ProxAdamW, **L1), tmp_path)
    assert 0.05 < share_of_zeros(optimizer) < 0.95
    for cls in (AdamW, ProxAdamW):
        kind, text = error_of(train, functools.partial(cls, fused=True), tmp_path)
        assert kind is RuntimeError
        assert "does not allow for gradient clipping" in text
