"""Launching a kernel: its kernarg segment, the registers that a dispatch sets, and the chunks of workgroups."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from validators.amdgcn.errors import MachineFault, TextError
from validators.amdgcn.floats import Array
from validators.amdgcn.lds import Lds
from validators.amdgcn.memory import Memory, Tensor
from validators.amdgcn.metadata import Argument
from validators.amdgcn.policies import NEAREST, Policy
from validators.amdgcn.scheduler import BUDGET, Scheduler, Step, assemble
from validators.amdgcn.state import FP16_OVFL, IEEE, LANES, State
from validators.amdgcn.text import Program

CHUNK_WAVES = 1024
"""Waves that run together: registers of this many stay in a CPU's caches, and more cost memory without being faster."""
LDS_LIMIT = {"gfx942": 65536, "gfx950": 163840}


Value = Tensor | int | float | None


@dataclass
class Trace:
    """What a launch showed besides its outputs.

    executed: bool for each instruction. findings: kind -> sentence. touched: items that the documents leave open.
    """

    program: Program
    policy: Policy
    executed: Array
    findings: dict[str, str] = field(default_factory=dict)
    touched: set[str] = field(default_factory=set)

    @property
    def coverage(self) -> tuple[int, int]:
        """(instructions executed, instructions)."""
        return int(self.executed.sum()), len(self.executed)

    @property
    def operations(self) -> tuple[str, ...]:
        """Mnemonics that were executed, sorted."""
        pairs = zip(self.program.instructions, self.executed, strict=True)
        return tuple(sorted({found.mnemonic for found, ran in pairs if ran}))


class Machine:
    """A kernel that can be launched many times."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.steps: tuple[Step, ...] = assemble(program)
        self.mode = initial_mode(program.descriptor)
        units = [step.access.unit for step in self.steps if step.access and step.access.unit]
        self.lds_unit = min([4, *units]) if units else 0
        self.vgprs = _registers(program, "v")
        self.agprs = _registers(program, "a")

    def launch(
        self,
        arguments: Sequence[Value],
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        *,
        lds: int | None = None,
        policy: Policy = NEAREST,
        poison: int = 0xA5,
        checked: bool = True,
        budget: int = BUDGET,
    ) -> Trace:
        """Run every workgroup of ``grid``; writable tensors are written in place.

        arguments: one for each explicit argument of the metadata. block: threads of a workgroup. lds: bytes of local
        memory of a workgroup where the launch decides it. poison: the byte that registers and LDS hold at first.
        checked: also look for races and reads of what was never written, in the first chunk, and for bytes that two
        workgroups write. Raises MachineFault or TextError.
        """
        program = self.program
        size = program.meta.lds if lds is None else lds
        if size > LDS_LIMIT[program.target]:
            raise MachineFault(f"{program.where}: {size:,} bytes of LDS are more than {program.target} has")
        threads = block[0] * block[1] * block[2]
        if not 0 < threads <= 1024 or (program.meta.threads and threads > program.meta.threads):
            raise MachineFault(f"{program.where}: {threads} threads are not what {program.name} was compiled for")
        memory, written, kernarg = self._memory(arguments, grid, block, checked)
        trace = Trace(program, policy, np.zeros(len(self.steps), dtype=bool))
        total, waves = grid[0] * grid[1] * grid[2], -(-threads // LANES)
        step = max(1, CHUNK_WAVES // waves)
        for first in range(0, total, step):
            count = min(step, total - first)
            state = State(program, count * waves, self.vgprs, self.agprs, policy, poison)
            unit = self.lds_unit if checked and first == 0 else 0
            state.memory, state.lds = memory, Lds(size, count, waves, poison, unit)
            state.executed, state.findings, state.touched = trace.executed, trace.findings, trace.touched
            self._begin(state, first, count, waves, grid, block, kernarg)
            Scheduler(state, self.steps, self.mode, budget).run()
        for number, tensor in written:
            buffer = memory.buffers[number]
            assert buffer is not None
            tensor.data[:] = buffer.content
        return trace

    def _memory(
        self, arguments: Sequence[Value], grid: tuple[int, int, int], block: tuple[int, int, int], checked: bool
    ) -> tuple[Memory, list[tuple[int, Tensor]], int]:
        """(buffers, the numbers of those that are written, address of the kernarg segment)."""
        meta, where = self.program.meta, self.program.where
        if len(arguments) != len(meta.explicit):
            raise TextError(f"{where}: {meta.name} takes {len(meta.explicit)} arguments, not {len(arguments)}")
        memory, written = Memory(), []
        segment = np.zeros(max(meta.kernarg_size, 8), dtype=np.uint8)
        known: dict[tuple[int, int], int] = {}
        for argument, value in zip(meta.explicit, arguments, strict=True):
            packed = value
            if isinstance(value, Tensor):
                # Two arguments in one memory see each other's stores, so they share a buffer.
                place = (value.address, value.data.size)
                number = known.get(place) if value.address else None
                if number is None:
                    number = known[place] = memory.add(value.name, value, owned=checked)
                packed = memory.address(number, value)
                if value.writable:
                    written.append((number, value))
            _put(segment, argument, packed, where)  # type: ignore[arg-type]
        hidden = _hidden(grid, block)
        for argument in meta.args:
            if argument.kind.startswith("hidden_"):
                _put(segment, argument, hidden.get(argument.kind, 0), where)
        kernarg = Tensor("kernarg", segment)
        return memory, written, memory.address(memory.add("kernarg", kernarg, owned=False), kernarg)

    def _begin(
        self,
        state: State,
        first: int,
        count: int,
        waves: int,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        kernarg: int,
    ) -> None:
        """Registers as a dispatch leaves them."""
        numbers = np.repeat(np.arange(first, first + count), waves)
        state.workgroup, state.first_workgroup = numbers, first
        number, given = self.program.descriptor, 0
        given = _user_registers(state, number, kernarg, self.program.where)
        ids = (numbers % grid[0], numbers // grid[0] % grid[1], numbers // (grid[0] * grid[1]))
        for axis, value in zip("xyz", ids, strict=True):
            if number.get(f"system_sgpr_workgroup_id_{axis}", int(axis == "x")):
                state.scalar[given] = value.astype(np.uint32)
                given += 1
        thread = (np.tile(np.arange(waves), count)[:, None] * LANES + np.arange(LANES)).astype(np.uint32)
        x, rest = thread % np.uint32(block[0]), thread // np.uint32(block[0])
        y, z = rest % np.uint32(block[1]), rest // np.uint32(block[1])
        # Packed work-item ids: 10 bits each, as every target from gfx90a on has them.
        state.vector[0] = x | (y << np.uint32(10)) | (z << np.uint32(20))
        threads = block[0] * block[1] * block[2]
        if threads % LANES:
            on = thread < threads
            state.exec_bits[:] = on
            packed = np.packbits(on, axis=1, bitorder="little").view("<u4")
            state.scalar[126], state.scalar[127] = packed[:, 0], packed[:, 1]


_USER = (
    ("private_segment_buffer", 4),
    ("dispatch_ptr", 2),
    ("queue_ptr", 2),
    ("kernarg_segment_ptr", 2),
    ("dispatch_id", 2),
    ("flat_scratch_init", 2),
    ("private_segment_size", 1),
)


def _user_registers(state: State, descriptor: Mapping[str, int], kernarg: int, where: str) -> int:
    """Set the user registers that the descriptor asks for; the number of the first system register."""
    at = 0
    for name, size in _USER:
        if not descriptor.get(f"user_sgpr_{name}"):
            continue
        if name == "kernarg_segment_ptr":
            state.scalar[at] = np.uint32(kernarg & 0xFFFFFFFF)
            state.scalar[at + 1] = np.uint32(kernarg >> 32)
        elif name == "private_segment_buffer":
            raise TextError(f"{where}: user registers {name} are not implemented")
        at += size
    # Preloaded arguments: the code begins with loads of its own for firmware that does not preload, and is run so.
    at += descriptor.get("user_sgpr_kernarg_preload_length", 0)
    return max(at, descriptor.get("user_sgpr_count", 0))


def _registers(program: Program, kind: str) -> int:
    last = [o.index + o.count for found in program.instructions for o in found.operands if o.kind == kind]
    return max(last, default=0) + (1 if kind == "v" else 0)


def initial_mode(descriptor: Mapping[str, int]) -> int:
    """MODE at the start, from the kernel descriptor."""
    if not descriptor.get("ieee_mode", 1):
        raise TextError("a kernel with ieee_mode 0 is not implemented")
    mode = descriptor.get("float_round_mode_32", 0) | descriptor.get("float_round_mode_16_64", 0) << 2
    mode |= descriptor.get("float_denorm_mode_32", 0) << 4 | descriptor.get("float_denorm_mode_16_64", 3) << 6
    mode |= descriptor.get("dx10_clamp", 1) << 8 | IEEE
    return mode | (FP16_OVFL if descriptor.get("fp16_overflow") else 0)


def _hidden(grid: tuple[int, int, int], block: tuple[int, int, int]) -> dict[str, int]:
    found = {"hidden_grid_dims": 3 if grid[2] > 1 else 2 if grid[1] > 1 else 1}
    for axis, groups, threads in zip("xyz", grid, block, strict=True):
        found[f"hidden_block_count_{axis}"] = groups
        found[f"hidden_group_size_{axis}"] = threads
    return found


def _put(segment: Array, argument: Argument, value: int | float | None, where: str) -> None:
    """Write one argument into the kernarg segment."""
    if isinstance(value, float):
        form = {4: "<f", 8: "<d"}.get(argument.size)
        if form is None:
            raise TextError(f"{where}: a float cannot be an argument of {argument.size} bytes")
        raw = struct.pack(form, value)
    else:
        raw = int(value or 0).to_bytes(9, "little", signed=True)[: argument.size]
    segment[argument.offset : argument.offset + argument.size] = np.frombuffer(raw, dtype=np.uint8)
