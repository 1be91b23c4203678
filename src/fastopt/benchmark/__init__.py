"""Timing optimizers: `fastopt bench`, and what `bench/` measures with.

`measure` takes turns and compares; `runs` builds contestants, checks their answers and has them timed; `works` and
`tasks` say what on; `contestants` and `rivals` who; `plan` and `targets` what for; `records` keeps the figures;
`quality` says what optimizers reach in training, `half` with weights in bfloat16;
`sheets`, `display`, `plots` and `documents` show them.
"""
