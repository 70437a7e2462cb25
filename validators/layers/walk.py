"""The walk: one prompt through the layers on three paths, every op judged on the activations that it really saw.

``truth`` is the float64 model; ``fused`` and ``unfused`` are two ``KernelPath`` objects that run freely, each on its
own activations. The walk holds its own view of what belongs where (which weights, residual, scale) and judges
each step against that view, so a wiring mistake shows at the step that makes it. Weights of a layer, and each
expert, are made once for all three.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from reference import glm4_moe
from reference.glm4_moe import Layer, Linear, Mlp, Moe, Routed, Source
from validators.calls.call import Claim
from validators.cases import tensors
from validators.layers.checkpoint_check import of_experts
from validators.layers.judging import Arm, Bench, Step, StoppedError
from validators.layers.path import FP8, KernelPath, stored, twin_contract
from validators.layers.result import Contracts, Depth, Result
from validators.layers.timing import Clock, TimedSource
from validators.layers.tp import Group, column_shard, row_shard, rows_of
from validators.layers.wiring import Suspects
from validators.records.record import Check, Status
from validators.tensor_file import CheckpointError

ALONE = Group()
ROWS = 16
"""Rows of the smallest tile of FP8 matrix units: what the tokens of one expert are padded to."""


@dataclass
class _Sent:
    """What an arm sends to its experts. handed: codes and scale of the tokens; inner: of the rows of every expert."""

    dispatch: glm4_moe.Dispatch
    handed: tuple[Tensor, ...]
    inner: tuple[Tensor, ...] = ()


class Walk:
    """A walk of ``tokens`` int64 [T] through ``source`` with a fused and an unfused path.

    judge_unfused: also judge the linears of the unfused path, which runs the same GEMM kernel.
    say: called with one line per layer. clock: where the time goes. unjudged: linears that are not quantized, as
    ``Checkpoint.check`` names them; they run in bf16, their products in float64, and no kernel is judged on them.
    """

    def __init__(
        self,
        source: Source,
        fused: KernelPath,
        unfused: KernelPath,
        contracts: Contracts,
        tokens: Tensor,
        *,
        group: Group = ALONE,
        judge_unfused: bool = False,
        say: Callable[[str], None] = lambda line: None,
        clock: Clock | None = None,
        unjudged: Sequence[str] = (),
    ) -> None:
        self.clock = clock or Clock()
        self.source = TimedSource(source, self.clock) if self.clock.on else source
        self.config, self.contracts, self.group = source.config, contracts, group
        self.say, self.judge_unfused = say, judge_unfused
        embedded = source.embed(tokens)
        hidden = embedded.to(torch.bfloat16)
        self.truth = hidden.double()
        self.arms = [Arm("fused", fused, hidden), Arm("unfused", unfused, hidden.clone())]
        self.result = Result(unjudged=tuple(unjudged))
        self.bench = Bench(self.result, contracts, self.clock, self._suspects)

    def run(self, layers: int) -> Result:
        """Walk layers 0 .. layers-1, and to the logits if that is all of them."""
        start = time.perf_counter()
        with torch.inference_mode():
            try:
                for index in range(layers):
                    began = time.perf_counter()
                    depth = self._layer(self.source.layer(index))
                    self.result.depths.append(depth)
                    self.say(self._line(depth, time.perf_counter() - began))
                self.result.digest = {arm.name: _digest(arm) for arm in self.arms}
                if layers == self.config.layers:
                    self._logits()
            except (StoppedError, CheckpointError) as stop:
                # What was judged before a weight that cannot be used is kept.
                self.result.stopped = str(stop)
        self.result.seconds = time.perf_counter() - start
        return self.result

    def _line(self, depth: Depth, seconds: float) -> str:
        here = [j for j in self.result.judged if j.layer == depth.layer]
        bad = sum(j.status is not Status.PASSED for j in here)
        errors = ", ".join(f"{arm} {float(e.median()):.3g}" for arm, e in depth.error.items())
        return (
            f"layer {depth.layer:3d}: {len(here)} ops judged, {bad} not passed; stream rms {depth.rms:.3g}, "
            f"median error {errors}; {seconds:.1f} s"
        )

    # ---- one layer

    def _layer(self, layer: Layer) -> Depth:
        config = self.config
        with self.clock.phase("float64 model"):
            self.truth = glm4_moe.attention_block(config, layer, self.truth)
        for arm in self.arms:
            handed = self._norm(arm, layer, "input", layer.qkv)
            qkv = self._columns(arm, layer, "qkv_proj", lambda w: w.qkv, config.qkv_sizes(), handed)
            with self.clock.phase("attention of the paths"):
                attended = glm4_moe.attention(config, layer, qkv.double(), stored).to(torch.bfloat16)
            arm.hidden = self._rows(arm, layer, "o_proj", lambda w: w.o, attended)
        x = glm4_moe.rms_norm(self.truth, layer.post_norm, config.eps)
        rerouted: dict[str, int] = {}
        if isinstance(layer.mlp, Mlp):
            with self.clock.phase("float64 model"):
                self.truth = self.truth + glm4_moe.mlp(layer.mlp, x)
            for arm in self.arms:
                handed = self._norm(arm, layer, "post", layer.mlp.gate_up)
                arm.hidden = self._mlp(arm, layer, "", _dense, handed)
        else:
            rerouted = self._moe(layer, layer.mlp, x)
        error: dict[str, Tensor] = {}
        for arm in self.arms:
            stream = arm.hidden.double() + (0.0 if arm.path.residual is None else arm.path.residual.double())
            error[arm.name] = (stream - self.truth).norm(dim=-1) / self.truth.norm(dim=-1)
        return Depth(layer.index, error, float(self.truth.square().mean().sqrt()), rerouted)

    def _moe(self, layer: Layer, moe: Moe, x: Tensor) -> dict[str, int]:
        """What the routed experts add to the stream is the environment: W8A8 products in float64, the same arithmetic
        in both arms. The quantizer runs and is judged on every row that they take; the GEMM kernel also runs on
        them and is judged on one expert per layer.
        """
        config = self.config
        right = glm4_moe.router(config, moe, x)
        rerouted: dict[str, int] = {}
        batches, shared = [Routed(x, *right)], []
        sent: list[_Sent] = []
        for arm in self.arms:
            normed, handed = self._plain_norm(arm, layer)
            index, weight = glm4_moe.router(config, moe, normed.double())
            changed = (index.sort(-1).values != right[0].sort(-1).values).any(-1)
            rerouted[arm.name] = int(changed.sum())
            # Quantized once before the tokens are sent to their experts, as fused MoE kernels do.
            plain = self._plain_experts(layer, "gate/up_proj")
            taken = normed.double() if plain else glm4_moe.values(handed[0]) * handed[1].double()
            sent.append(_Sent(glm4_moe.Dispatch.of(config, index, weight), handed))
            batches.append(Routed(taken, index, weight, self._feed(arm, layer, sent[-1]), stored))
            if moe.shared is not None and moe.shared.gate_up.scale is None:
                handed = (normed,)
            shared.append(self._mlp(arm, layer, "shared.", _shared, handed) if moe.shared is not None else None)
        with self.clock.phase("routed experts"):
            truth, *outs = glm4_moe.experts(config, moe, batches)
        for arm, own in zip(self.arms, sent, strict=True):
            if arm.name == "fused" or self.judge_unfused:
                self._sampled_expert(arm, layer, moe, own)
        with self.clock.phase("float64 model"):
            self.truth = self.truth + truth + (0.0 if moe.shared is None else glm4_moe.mlp(moe.shared, x))
        for arm, out, extra in zip(self.arms, outs, shared, strict=True):
            routed = out.float().to(torch.bfloat16)
            arm.hidden = routed if extra is None else (routed.float() + extra.float()).to(torch.bfloat16)
        return rerouted

    def _plain_experts(self, layer: Layer, step: str) -> bool:
        return bool(of_experts(self.result.unjudged, layer.index, step))

    def _feed(self, arm: Arm, layer: Layer, sent: _Sent) -> Callable[[Tensor], Tensor]:
        if self._plain_experts(layer, "down_proj"):
            return stored

        def feed(x: Tensor) -> Tensor:
            step = Step(arm, layer, "experts.down_proj", "per_token_quant")
            sent.inner = self._quantized(step, x.float().to(torch.bfloat16))
            return glm4_moe.values(sent.inner[0]) * sent.inner[1].double()

        return feed

    def _sampled_expert(self, arm: Arm, layer: Layer, moe: Moe, sent: _Sent) -> None:
        """Run and judge both GEMMs of the expert with the most tokens (the first of equals) on what it really took.
        What they return goes nowhere: the stream's experts are float64 in both arms, so that the arms stay alike.
        That is also why a kernel that raises here is an ERROR of that op and does not stop the walk.

        The tokens are padded to a multiple of 16 with zero codes of scale 1, as engines that group tokens by expert do:
        some libraries take no other number. The padded rows are judged too; they must be zero.
        """
        spans = sent.dispatch.spans
        number = max(spans, key=lambda e: (spans[e].stop - spans[e].start, -e))
        span = spans[number]
        rows = sent.dispatch.row[span]
        handed = [("gate_up_proj", moe.gate_up, (_rows_of(sent.handed[0], rows), sent.handed[1][rows]))]
        if sent.inner:
            handed.append(("down_proj", moe.down, (sent.inner[0][span], sent.inner[1][span])))
        for name, make, (codes, scale) in handed:
            weights = make(number)
            if weights.scale is None:
                continue
            with contextlib.suppress(StoppedError):
                step = Step(arm, layer, f"experts.{number}.{name}", "ptpc_gemm")
                self._linear(step, weights, weights, _padded(codes, scale))

    def _mlp(
        self, arm: Arm, layer: Layer, prefix: str, of: Callable[[Layer], Mlp], handed: tuple[Tensor, ...]
    ) -> Tensor:
        width = len(of(layer).gate_up.weight) // 2
        both = self._columns(arm, layer, f"{prefix}gate_up_proj", lambda w: of(w).gate_up, (width, width), handed)
        inner = glm4_moe.gated(both.double()).float().to(torch.bfloat16)
        return self._rows(arm, layer, f"{prefix}down_proj", lambda w: of(w).down, inner)

    # ---- steps: claimed by the path, judged here

    def _norm(self, arm: Arm, layer: Layer, which: Literal["input", "post"], following: Linear) -> tuple[Tensor, ...]:
        name = f"{which if which == 'input' else 'post_attention'}_layernorm"
        step = Step(arm, layer, name, "add_rmsnorm_quant", own_norm=arm.name == "unfused")
        if following.scale is None:
            return self._bf16_norm(step, which)
        handed = self.bench.attempt(step, lambda: arm.path.prepare(layer, which, arm.hidden))
        weight = layer.input_norm if which == "input" else layer.post_norm
        self._judge_norm(step, weight, handed)
        return handed

    def _bf16_norm(self, step: Step, which: str) -> tuple[Tensor, ...]:
        """The norm in front of a linear that is not quantized: no kernel's, and the same on both paths."""
        arm, own = step.arm, step.arm.path.weights(step.layer)
        weight = own.input_norm if which == "input" else own.post_norm
        normed = self.bench.attempt(step, lambda: arm.path.add_rmsnorm(weight, arm.hidden))
        kept = arm.path.residual
        arm.expected = arm.hidden.clone() if kept is None else kept.clone()
        return (normed,)

    def _plain_norm(self, arm: Arm, layer: Layer) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The bf16 norm before a router, and its quantized form for the shared expert; judged as one op."""
        step = Step(arm, layer, "post_attention_layernorm", "add_rmsnorm_quant", own_norm=True)
        path = arm.path
        normed = self.bench.attempt(step, lambda: path.add_rmsnorm(path.weights(layer).post_norm, arm.hidden))
        handed = self.bench.attempt(step, lambda: path.quantize(normed))
        self._judge_norm(step, layer.post_norm, handed)
        return normed, handed

    def _judge_norm(self, step: Step, weight: Tensor, handed: tuple[Tensor, ...]) -> None:
        arm = step.arm
        contract = twin_contract(self.contracts.quant) if step.own_norm else self.contracts.norm
        first = arm.expected is None
        inputs = tensors.NormQuantInputs(arm.hidden, arm.expected, weight, self.config.eps, FP8)
        kept = arm.path.residual
        outputs = tensors.NormQuantOutputs(handed[0], handed[1], None if first else _copy(kept))
        checks = []
        if first:
            same = kept is not None and torch.equal(tensors.as_ints(kept), tensors.as_ints(arm.hidden))
            words = "became the residual stream" if same else "is not what the path kept as the residual stream"
            checks.append(Check("first residual", same, f"the first norm's input {words}", "integrity"))
        self.bench.judge(step, Claim(inputs, outputs), contract, checks)
        arm.memory.remember_norm(f"layer {step.layer.index}, {step.name}", inputs, handed[1])
        arm.expected = arm.hidden.clone() if kept is None else kept.clone()

    def _columns(
        self,
        arm: Arm,
        layer: Layer,
        step: str,
        of: Callable[[Layer], Linear],
        sizes: Sequence[int],
        handed: tuple[Tensor, ...],
    ) -> Tensor:
        """A column-parallel linear: each rank makes its share of the outputs, bf16 [T, out] of all of them."""
        group, parts = self.group, []
        right, used = of(layer), of(arm.path.weights(layer))
        places = [rows_of(sizes, rank, group.size, arm.hidden.device) for rank in range(group.size)]
        for rank in group.local:
            alone = group.size == 1
            own, claimed = (w if alone else column_shard(w, places[rank]) for w in (right, used))
            parts.append(self._linear(Step(arm, layer, step, "ptpc_gemm", rank), own, claimed, handed))
        out = parts[0].new_empty(len(parts[0]), sum(sizes))
        for place, part in zip(places, group.gather(parts), strict=True):
            out[:, place] = part
        return out

    def _rows(self, arm: Arm, layer: Layer, step: str, of: Callable[[Layer], Linear], x: Tensor) -> Tensor:
        """A row-parallel linear: each rank quantizes and multiplies its share of the inputs; then the all-reduce."""
        group, parts = self.group, []
        right, used = of(layer), of(arm.path.weights(layer))
        for rank in group.local:
            part, own = (slice(None), right) if group.size == 1 else row_shard(right, rank, group.size)
            claimed = used if group.size == 1 else row_shard(used, rank, group.size)[1]
            own_x = x[:, part].contiguous()
            handed: tuple[Tensor, ...] = (own_x,)
            if own.scale is not None:
                handed = self._quantized(Step(arm, layer, step, "per_token_quant", rank), own_x)
            parts.append(self._linear(Step(arm, layer, step, "ptpc_gemm", rank), own, claimed, handed))
        total = group.all_reduce(parts)
        if group.size > 1 and not group.real:
            arm.memory.partial = torch.stack([p.float() for p in parts]).sum(0)
        return total

    def _quantized(self, step: Step, x: Tensor) -> tuple[Tensor, ...]:
        handed = self.bench.attempt(step, lambda: step.arm.path.quantize(x))
        outputs = tensors.QuantOutputs(handed[0], handed[1])
        self.bench.judge(step, Claim(tensors.QuantInputs(x, FP8), outputs), self.contracts.quant)
        step.arm.memory.token_scale = outputs.scale
        return handed

    def _linear(self, step: Step, right: Linear, claimed: Linear, handed: tuple[Tensor, ...]) -> Tensor:
        arm = step.arm
        if right.scale is None:
            # Not quantized in the checkpoint: a float64 product, stored once, the same on both paths.
            with self.clock.phase("linears that are not quantized"):
                return right.apply(handed[0].double()).to(torch.bfloat16)
        out = self.bench.attempt(step, lambda: arm.path.linear(step.layer, claimed, handed))
        inputs = tensors.GemmInputs(handed[0], handed[1], right.weight, right.scale, right.bias, torch.bfloat16)
        contract = self.contracts.gemm
        if right.bias is not None:
            contract = contract.replace(bias="after_store")
        if arm.name == "fused" or self.judge_unfused:
            self.bench.judge(step, Claim(inputs, tensors.GemmOutputs(out)), contract)
        arm.memory.weight_scale = inputs.b_scale
        arm.memory.lengths.add(inputs.a.shape[1])
        return out

    def _suspects(self, step: Step) -> Suspects:
        """What the layer before has in the place of ``step``; its weights are made or read again for this."""
        layer, clean = step.layer, KernelPath(step.arm.path.kernels, self.config, "fp8_per_token")
        if layer.index == 0 or self.group.size > 1:
            return Suspects(clean, self.contracts.quant)
        before = self.source.layer(layer.index - 1)
        linears = {"qkv_proj": before.qkv, "o_proj": before.o}
        if isinstance(before.mlp, Mlp):
            linears |= {"gate_up_proj": before.mlp.gate_up, "down_proj": before.mlp.down}
        elif before.mlp.shared is not None:
            shared = before.mlp.shared
            linears |= {"shared.gate_up_proj": shared.gate_up, "shared.down_proj": shared.down}
        norms = {"input_layernorm": before.input_norm, "post_attention_layernorm": before.post_norm}
        return Suspects(clean, self.contracts.quant, linears.get(step.name), norms.get(step.name))

    # ---- the end

    def _logits(self) -> None:
        weight = self.source.final_norm()
        ends = {"truth": glm4_moe.rms_norm(self.truth, weight, self.config.eps)}
        for arm in self.arms:
            ends[arm.name] = arm.path.add_rmsnorm(weight, arm.hidden).double()
        together = torch.cat(list(ends.values()))
        every = glm4_moe.logits(self.source, together).split(len(self.truth))
        self.result.logits = dict(zip(ends, every, strict=True))


def _rows_of(codes: Tensor, rows: Tensor) -> Tensor:
    # FP8 tensors have no index on every backend; their bytes do.
    return codes.view(torch.uint8)[rows].view(codes.dtype)


def _padded(codes: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    rows = -len(codes) % ROWS
    raw = torch.nn.functional.pad(codes.view(torch.uint8), (0, 0, 0, rows))
    return raw.view(codes.dtype), torch.nn.functional.pad(scale, (0, 0, 0, rows), value=1.0)


def _dense(layer: Layer) -> Mlp:
    assert isinstance(layer.mlp, Mlp)
    return layer.mlp


def _shared(layer: Layer) -> Mlp:
    assert isinstance(layer.mlp, Moe)
    assert layer.mlp.shared is not None
    return layer.mlp.shared


def _digest(arm: Arm) -> str:
    total = hashlib.sha256()
    for tensor in (arm.hidden, arm.path.residual):
        if tensor is not None:
            total.update(tensor.contiguous().cpu().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def _copy(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.clone()
