"""How outputs of ``add_rmsnorm_quant`` are judged."""

from validators.judge.norm import compare_norm_quant, open_rows
from validators.judge.op import JudgeOp

JUDGE = JudgeOp(compare=compare_norm_quant, open_rows=open_rows)
