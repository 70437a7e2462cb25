"""How outputs of ``per_token_quant`` are judged."""

from validators.judge.norm import compare_quant, open_rows
from validators.judge.op import JudgeOp

JUDGE = JudgeOp(compare=compare_quant, open_rows=open_rows)
