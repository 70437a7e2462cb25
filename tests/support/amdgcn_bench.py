"""One instruction at a time: registers set, the line executed, registers read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from validators.amdgcn.lds import Lds
from validators.amdgcn.memory import Memory
from validators.amdgcn.policies import NEAREST, Policy
from validators.amdgcn.scheduler import Scheduler, assemble
from validators.amdgcn.state import LANES, State
from validators.amdgcn.text import parse_program

MODE = 0x3F0
"""Round to nearest, denormals kept, DX10_CLAMP and IEEE."""
OVFL = 1 << 23

_TEXT = """	.amdgcn_target "amdgcn-amd-amdhsa--{target}"
	.text
	.type k,@function
k:
{code}
	s_endpgm
	.amdhsa_kernel k
	.amdhsa_user_sgpr_kernarg_segment_ptr 1
	.end_amdhsa_kernel
	.amdgpu_metadata
amdhsa.kernels:
  - .args: []
    .group_segment_fixed_size: 4096
    .kernarg_segment_size: 0
    .max_flat_workgroup_size: 1024
    .name: k
    .private_segment_fixed_size: 64
	.end_amdgpu_metadata
"""


def text_of(code: str, target: str = "gfx942") -> str:
    """A whole assembly text around some lines of code."""
    return _TEXT.format(code=code, target=target)


class Bench:
    """A state of some waves in which lines are executed. v, s: registers that are read and written by their number."""

    def __init__(self, waves: int = 1, policy: Policy = NEAREST, poison: int = 0xA5, mode: int = MODE) -> None:
        self.waves, self.policy, self.poison, self.mode = waves, policy, poison, mode
        self.v: dict[int, np.ndarray] = {}
        self.s: dict[int, np.ndarray] = {}
        self.scc: np.ndarray | None = None
        self.exec: int | None = None
        self.state: State

    def run(self, code: str, target: str = "gfx942") -> State:
        """Execute lines; the state afterwards."""
        program = parse_program(text_of(code, target), where="bench.s")
        state = State(program, self.waves, 64, 64, self.policy, self.poison)
        state.memory, state.lds = Memory(), Lds(4096, self.waves, 1, self.poison, 0)
        state.workgroup = np.arange(self.waves)
        for index, value in self.v.items():
            state.vector[index] = value
        for index, value in self.s.items():
            state.scalar[index] = value
        if self.scc is not None:
            state.scc_bits[:] = self.scc
        if self.exec is not None:
            state.exec_bits[:] = [(self.exec >> lane) & 1 for lane in range(LANES)]
            state.scalar[126], state.scalar[127] = self.exec & 0xFFFFFFFF, self.exec >> 32
        Scheduler(state, assemble(program), self.mode, 10_000).run()
        self.state = state
        return state


def spread(values: Sequence[int], waves: int) -> np.ndarray:
    """Values over the lanes of ``waves`` waves, uint32 [waves, 64]."""
    return np.array(values, dtype=np.uint64).astype(np.uint32).reshape(waves, LANES)


def execute(
    code: str,
    sources: Mapping[int, Sequence[int]],
    result: int,
    *,
    mode: int = MODE,
    policy: Policy = NEAREST,
    target: str = "gfx942",
) -> list[int]:
    """What register ``result`` holds in each lane after ``code``; sources: vector register -> a value a lane."""
    waves = len(next(iter(sources.values()))) // LANES
    bench = Bench(waves, policy, mode=mode)
    bench.v = {index: spread(values, waves) for index, values in sources.items()}
    return [int(x) for x in bench.run(code, target).vector[result].reshape(-1)]
