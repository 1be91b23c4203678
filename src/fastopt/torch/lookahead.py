"""Lookahead for torch."""

from __future__ import annotations

import torch

from fastopt import lookahead


class Lookahead(lookahead.Lookahead, torch.optim.Optimizer):
    """`fastopt.Lookahead`, which torch's schedulers take for an optimizer of theirs."""
