"""Trains the embedded model: a small GLM-4-MoE on synthetic problems, in minutes on one GPU, within a time limit.

``python -m evals.studies.train --seconds 330 --out DIR --device cuda`` makes problems in worker processes, trains in
bf16 with fp32 master weights and a cosine schedule over the time, and measures 512 held-out problems as it goes. The
measure is cheap because a solution is a function of its question: greedy decoding gives the gold solution exactly if,
teacher-forced, every token of it is the first choice. Snapshots are kept where that accuracy crosses the marks, and the
last one that is within the band is exported: the most settled model that is not saturated. A model that answers
everything is so sure of its tokens that no defect changes an answer.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import sys
import tarfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evals.model import synthetic, tokenizer
from evals.studies.config import glm4_moe
from evals.studies.export import (
    dequantized,
    join_experts,
    quantized,
    stored,
    write_checkpoint,
    write_tokenizer,
)
from evals.studies.stream import Stream
from validators.process.guard import Exit, guarded
from validators.records import files

MARKS = (0.82, 0.84, 0.86, 0.88, 0.89, 0.90, 0.91, 0.92, 0.93, 0.94, 0.95, 0.96)
BAND = (0.86, 0.945)  # held-out accuracy of a model on which defects can show and which is yet worth asking
ROUTER_STEP = 1e-3  # of the correction bias, DeepSeek-V3's update
Model = Any
"""A ``Glm4MoeForCausalLM``; the library's own types differ from version to version."""


@dataclass
class Snapshot:
    """State of the model (on the CPU, as stored) and what was measured with it."""

    step: int
    exact: float
    state: dict[str, Tensor] = field(repr=False)


def evaluation_batch(problems: list[synthetic.Problem]) -> tuple[Tensor, Tensor]:
    """Ids int64 [B, T] and answer starts int64 [B] of problems, padded at the right."""
    rows, starts = [], []
    for problem in problems:
        asked = tokenizer.encode(synthetic.prompt(problem.question))
        rows.append(torch.tensor(asked + tokenizer.encode(synthetic.completion(problem.solution)) + [tokenizer.END_ID]))
        starts.append(len(asked))
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), torch.tensor(starts)


def answer_logits(model: Model, ids: Tensor, starts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """fp32 logits [N, V] at the places before answer tokens, those tokens [N], and the mask [B, T-1] of them."""
    places = torch.arange(1, ids.shape[1], device=ids.device)
    chosen = (places[None, :] >= starts[:, None]) & (ids[:, 1:] != 0)
    hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
    return model.lm_head(hidden[chosen]).float(), ids[:, 1:][chosen], chosen


def exact_share(model: Model, ids: Tensor, starts: Tensor, batch: int = 256) -> tuple[float, list[bool]]:
    """Share of problems whose every answer token is the first choice, and for each whether it is."""
    right: list[bool] = []
    model.eval()
    with torch.no_grad():
        for first in range(0, len(ids), batch):
            logits, gold, chosen = answer_logits(model, ids[first : first + batch], starts[first : first + batch])
            wrong = torch.zeros_like(chosen)
            wrong[chosen] = logits.argmax(-1) != gold
            right += (~wrong.any(dim=1)).tolist()
    model.train()
    return sum(right) / len(right), right


class Balance:
    """Keeps the experts in use without a loss term: the router's correction bias follows the load (DeepSeek-V3)."""

    def __init__(self, model: Model):
        self._loads: dict[Model, Tensor] = {}  # router -> tokens per expert
        for module in model.modules():
            if hasattr(module, "e_score_correction_bias"):
                module.register_forward_hook(self._note)

    def _note(self, module: Model, inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
        import torch

        if not module.training:
            return
        with_indices = output if isinstance(output, tuple) else (output,)
        chosen = with_indices[-1]
        if chosen.is_floating_point():  # a router that returns logits alone
            chosen = (chosen.sigmoid() + module.e_score_correction_bias).topk(module.top_k, dim=-1)[1]
        flat, load = chosen.detach().flatten(), torch.zeros_like(module.e_score_correction_bias)
        self._loads[module] = load.scatter_add_(0, flat, torch.ones_like(flat, dtype=load.dtype))

    def step(self, size: float = ROUTER_STEP) -> None:
        for module, load in self._loads.items():
            module.e_score_correction_bias.add_(size * (load.mean() - load).sign())

    def spread(self) -> float:
        """Largest load over mean load, over all layers; 1 is even."""
        return max(float(load.max() / load.mean()) for load in self._loads.values()) if self._loads else 1.0


class Trainer:
    """AdamW on fp32 master copies of a bf16 model: the arithmetic of training is then that of use."""

    def __init__(self, model: Model, rate: float):
        import torch

        self.model, self.rate = model, rate
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.masters = [p.detach().float().clone().requires_grad_() for p in self.parameters]
        matrices = [m for m in self.masters if m.dim() > 1]
        vectors = [m for m in self.masters if m.dim() <= 1]
        groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
        fused = self.parameters[0].device.type == "cuda"
        self.optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), eps=1e-9, fused=fused)

    def step(self, loss: Tensor, rate: float) -> None:
        import torch

        loss.backward()
        for master, parameter in zip(self.masters, self.parameters, strict=True):
            # An expert that no token took has no gradient: it stays, but for its decay.
            master.grad = torch.zeros_like(master) if parameter.grad is None else parameter.grad.float()
            parameter.grad = None
        torch.nn.utils.clip_grad_norm_(self.masters, 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_copy_(self.parameters, self.masters)


def cosine(share: float, peak: float) -> float:
    """Rate at a share of the time: 3 % warm-up, cosine down to 2 %."""
    if share < 0.03:
        return peak * share / 0.03 + 1e-6
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, (share - 0.03) / 0.97))))


def build(size: str, device: str, seed: int) -> Model:
    """A freshly initialised model in bf16 (routers in fp32) on ``device``."""
    from transformers import Glm4MoeForCausalLM

    torch.manual_seed(seed)
    model: Model = Glm4MoeForCausalLM(glm4_moe(size))
    for name, parameter in model.named_parameters():  # parameters alone: rotary frequencies must stay fp32
        if not name.endswith("mlp.gate.weight"):
            parameter.data = parameter.data.to(torch.bfloat16)
    return model.to(device)


def choose_experts(model: Model, ids: Tensor, starts: Tensor) -> str:
    """The fastest way through the experts that works here, tried by one forward and backward; its name."""
    for name in ("grouped_mm", "batched_mm", "eager"):
        try:
            model.config._experts_implementation = name
            logits = answer_logits(model, ids, starts)[0]
            logits.logsumexp(-1).mean().backward()
        except Exception as failure:
            # What a way raises that this torch or GPU lacks depends on the versions.
            print(f"experts by {name} do not work here: {str(failure).splitlines()[0][:160]}", flush=True)
            continue
        finally:
            model.zero_grad(set_to_none=True)
        return name
    raise RuntimeError("no way through the experts works")


def train(options: argparse.Namespace) -> tuple[Model, list[Snapshot]]:
    """The training loop; gives the model as it ended and the snapshots, the last state among them."""
    device = options.device
    stream = Stream(options.seed, options.batch, options.workers)
    model = build(options.size, device, options.seed)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters on {device}", flush=True)
    ids, starts = evaluation_batch(synthetic.held_out(512, seed=options.seed + 1))
    ids, starts = ids.to(device), starts.to(device)
    print("experts by", choose_experts(model, ids[:8], starts[:8]), flush=True)
    trainer, balance = Trainer(model, options.rate), Balance(model)
    model.train()
    began = asked = time.monotonic()
    snapshots: list[Snapshot] = []
    step = done_in_a_row = 0
    marks = list(MARKS)
    for batch_ids, batch_starts in stream:
        now = time.monotonic()
        share = (now - began) / options.seconds
        if share >= 1:
            break
        batch = torch.from_numpy(batch_ids).to(device=device, dtype=torch.int64, non_blocking=True)
        where = torch.from_numpy(batch_starts).to(device=device, dtype=torch.int64, non_blocking=True)
        logits, gold, _ = answer_logits(model, batch, where)
        loss = torch.nn.functional.cross_entropy(logits, gold)
        trainer.step(loss, cosine(share, options.rate))
        balance.step()
        step += 1
        if now - asked >= options.every:
            asked = now
            exact, _ = exact_share(model, ids, starts)
            line = f"{now - began:6.1f} s  step {step:6d}  loss {float(loss.detach()):.4f}  exact {exact:.4f}"
            print(f"{line}  expert load {balance.spread():.2f}", flush=True)
            if marks and exact >= marks[0]:
                snapshots.append(Snapshot(step, exact, stored(model)))
                marks = [mark for mark in marks if mark > exact]
            done_in_a_row = done_in_a_row + 1 if exact >= options.stop_at else 0
            if done_in_a_row >= 2:
                print(f"stopped: {exact:.4f} is at or above {options.stop_at}", flush=True)
                break
    stream.close()
    exact, _ = exact_share(model, ids, starts)
    print(f"end: {step} steps in {time.monotonic() - began:.0f} s, exact {exact:.4f}", flush=True)
    snapshots.append(Snapshot(step, exact, stored(model)))
    return model, snapshots


def describe(right: list[bool], problems: list[synthetic.Problem]) -> str:
    """Accuracy by number of lines and by hardness: what to change in the mix if the total is not where it should be."""
    parts = []
    for lines in range(1, 7):
        some = [ok for ok, made in zip(right, problems, strict=True) if made.lines == lines]
        parts.append(f"{lines} lines {sum(some) / max(1, len(some)):.3f} of {len(some)}")
    for hard in (False, True):
        some = [ok for ok, made in zip(right, problems, strict=True) if made.hard == hard]
        parts.append(f"{'hard' if hard else 'plain'} {sum(some) / max(1, len(some)):.3f} of {len(some)}")
    return ", ".join(parts)


def export(model: Model, snapshots: list[Snapshot], options: argparse.Namespace) -> None:
    """Measures every snapshot in FP8 on the embedded questions and writes files of at most 15 MiB.

    ``bf16-*``: the chosen snapshot. ``fp8-<step>.safetensors``: it, the one before it in the band, and the last.
    ``small.tar``: config.json of both kinds, tokenizer files, training.json.
    """
    from safetensors.torch import save_file

    out = Path(options.out)
    problems = synthetic.held_out(options.questions)
    ids, starts = evaluation_batch(problems)
    ids, starts = ids.to(options.device), starts.to(options.device)
    measured: list[tuple[Snapshot, float, str]] = []
    for snapshot in snapshots:
        model.load_state_dict(join_experts(dequantized(quantized(snapshot.state))))
        exact, right = exact_share(model, ids, starts)
        measured.append((snapshot, exact, describe(right, problems)))
        print(f"snapshot {snapshot.step}: exact {exact:.4f} of {len(problems)} in FP8; {measured[-1][2]}", flush=True)
    within = [snapshot for snapshot, exact, _ in measured if BAND[0] <= exact <= BAND[1]]
    nearest = min(measured, key=lambda entry: abs(entry[1] - sum(BAND) / 2))[0]
    chosen = within[-1] if within else nearest
    others = [snapshot for snapshot in (within[:-1][-1:] + snapshots[-1:]) if snapshot is not chosen]
    print(f"chosen: step {chosen.step}; exported as well: {[other.step for other in others]}", flush=True)
    work = out / "folders"
    write_checkpoint(work / "bf16", chosen.state, model.config, fp8=False)
    write_checkpoint(work / "fp8", quantized(chosen.state), model.config, fp8=True)
    write_tokenizer(work / "bf16")
    write_tokenizer(work / "fp8")
    facts = {
        "command": vars(options),
        "chosen_step": chosen.step,
        "snapshots": [{"step": snapshot.step, "exact_fp8": exact, "by": by} for snapshot, exact, by in measured],
    }
    (work / "training.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    for file in sorted((work / "bf16").glob("*.safetensors")):
        file.rename(out / f"bf16-{file.name}")
    for file in (work / "fp8").glob("*.safetensors"):
        file.rename(out / f"fp8-{chosen.step}.safetensors")
    for other in others:
        save_file(quantized(other.state), out / f"fp8-{other.step}.safetensors", metadata={"format": "pt"})
    with tarfile.open(out / "small.tar", "w") as bundle:
        for file in sorted(work.rglob("*")):
            if file.is_file():
                entry = tarfile.TarInfo(str(file.relative_to(work)))
                content = file.read_bytes()
                entry.size = len(content)
                bundle.addfile(entry, io.BytesIO(content))
    for file in sorted(work.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    work.rmdir()
    for file in sorted(out.iterdir()):
        print(f"{file.stat().st_size / 2**20:7.2f} MiB  {file.name}", flush=True)


def main(arguments: list[str] | None = None) -> int:
    return guarded(
        "evals.studies.train",
        lambda: _command(arguments),
        interrupted="nothing is exported before the training ends",
    )


def _command(arguments: list[str] | None) -> int:
    parser = argparse.ArgumentParser(prog="python -m evals.studies.train", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=330.0, help="of training; making data and export come on top")
    parser.add_argument("--out", required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", default="embedded", choices=("embedded", "tiny"))
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--every", type=float, default=6.0, help="seconds between measurements")
    parser.add_argument("--stop-at", type=float, default=0.985, help="stop when two measurements reach this")
    parser.add_argument("--questions", type=int, default=synthetic.EMBEDDED_QUESTIONS)
    parser.add_argument("--workers", type=int, default=12)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    files.check_folder(options.out)
    model, snapshots = train(options)
    export(model, snapshots, options)
    return Exit.YES


if __name__ == "__main__":
    sys.exit(main())
