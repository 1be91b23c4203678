"""The oracle: every rule in float64 NumPy, written as the papers and torch write it.

One function a row of csrc/rules.def, with the row's name. It takes the parameter, the gradient, the states from before
(none of them before a parameter's first step), the number of this step (the first is 1) and the optimizer's options,
and returns the new parameter and states. Nothing is folded into scalars, fused or narrowed here: sharing the kernels'
shortcuts would hide their mistakes.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
State = dict[str, Array]
Options = Mapping[str, Any]
Rule = Callable[[Array, Array, State, int, Options], tuple[Array, State]]

RULES: dict[str, Rule] = {}


def rule(function: Rule) -> Rule:
    RULES[function.__name__] = function
    return function


OWN_DECAY = {"lars", "lars_momentum", "lamb", "schedule_free_adamw"}
"""Rules that apply weight decay themselves, unless it is decoupled."""

OWN_DECOUPLED_DECAY = {"stable_adamw", "prodigy"}
"""Rules that apply decoupled weight decay themselves."""


def step(
    name: str,
    p: Array,
    g: Array,
    state: State,
    t: int,
    options: Options,
    *,
    clip_coefficient: float = 1.0,
    clip_value: float = np.inf,
) -> tuple[Array, State]:
    """One whole step: what every optimizer does around its rule, in torch's order, and the rule."""
    g = np.clip(g * clip_coefficient, -clip_value, clip_value)
    if options["maximize"]:
        g = -g
    if options["weight_decay"] != 0:
        if options.get("decoupled_weight_decay"):
            if name not in OWN_DECOUPLED_DECAY:
                p = decayed(name, p, g, state, t, options)
        elif name not in OWN_DECAY:
            g = g + options["weight_decay"] * p
    return RULES[name](p, g, state, t, options)


def decayed(name: str, p: Array, g: Array, state: State, t: int, options: Options, rate: float | None = None) -> Array:
    rate = options["lr"] if rate is None else rate
    if options.get("corrected_weight_decay"):
        rate *= options["lr"] / options["peak_lr"]
    shrunk: Array = p * (1 - rate * options["weight_decay"])
    if not options.get("cautious_decay"):
        return shrunk
    after, _ = RULES[name](p, g, state, t, {**options, "cautious": False, "weight_decay": 0})
    found: Array = np.where((p - after) * p >= 0, shrunk, p)
    return found


def cautious(update: Array, g: Array, options: Options) -> Array:
    if not options["cautious"]:
        return update
    agrees = update * g > 0
    masked: Array = update * agrees / max(float(np.mean(agrees)), 1e-3) if g.size else update
    return masked


def clip_coefficient(norm: float, clip_norm: float) -> float:
    """`torch.nn.utils.clip_grad_norm_`'s."""
    return min(1.0, clip_norm / (norm + 1e-6))


@rule
def sgd(p: Array, g: Array, state: State, t: int, options: Options) -> tuple[Array, State]:
    return p - options["lr"] * g, {}


@rule
def momentum(p: Array, g: Array, state: State, t: int, options: Options) -> tuple[Array, State]:
    lr, mu = options["lr"], options["momentum"]
    old = state.get("momentum_buffer")
    if options["velocity"] == "sum":
        v = g if old is None else mu * old + (1 - options["dampening"]) * g
        ahead = g + mu * v
        displacement = -lr * (ahead if options["nesterov"] else v)
    elif options["velocity"] == "mean":
        v = (1 - mu) * g if old is None else mu * old + (1 - mu) * g
        ahead = (1 - mu) * g + mu * v
        displacement = -lr * (ahead if options["nesterov"] else v)
    else:
        v = -lr * g if old is None else mu * old - lr * g
        displacement = mu * v - lr * g if options["nesterov"] else v
    return p + displacement, {"momentum_buffer": v}


@rule
def adagrad(p: Array, g: Array, state: State, t: int, options: Options) -> tuple[Array, State]:
    total = state.get("sum", np.full_like(p, options["initial_accumulator_value"])) + g**2
    lr = options["lr"] / (1 + (t - 1) * options["lr_decay"])
    return p - lr * g / (np.sqrt(total + options["eps_root"]) + options["eps"]), {"sum": total}


def moving_average(old: Array | None, new: Array, decay: float) -> Array:
    return (1 - decay) * new if old is None else decay * old + (1 - decay) * new


def normalized(g: Array, mean_square: Array, options: Options) -> Array:
    scaled: Array = g / (np.sqrt(mean_square + options["eps_root"]) + options["eps"])
    return scaled


def heavy_ball(old: Array | None, update: Array, options: Options) -> Array:
    return update if old is None else options["momentum"] * old + update


@rule
def rmsprop(p: Array, g: Array, state: State, t: int, options: Options) -> tuple[Array, State]:
    s = moving_average(state.get("square_avg"), g**2, options["alpha"])
    return p - options["lr"] * normalized(g, s, options), {"square_avg": s}


@rule
def rmsprop_momentum(p: Array, g: Array, state: State, t: int, options: Options) -> tuple[Array, State]:
    s = moving_average(state.get("square_avg"), g**2, options["alpha"])
    b = heavy_ball(state.get("momentum_buffer"), normalized(g, s, options), options)
    return p - options["lr"] * b, {"square_avg": s, "momentum_buffer": b}


@rule
def rmsprop_centered(p: Array, g: Array, state: State, t: int, options: Options) -> tuple[Array, State]:
    s = moving_average(state.get("square_avg"), g**2, options["alpha"])
    a = moving_average(state.get("grad_avg"), g, options["alpha"])
    variance = np.maximum(s - a**2, 0)
    return p - options["lr"] * normalized(g, variance, options), {"square_avg": s, "grad_avg": a}


@rule
def rmsprop_centered_momentum(p: Array, g: Array, state: State, t: int, options: Options) -> tuple[Array, State]:
    s = moving_average(state.get("square_avg"), g**2, options["alpha"])
    a = moving_average(state.get("grad_avg"), g, options["alpha"])
    variance = np.maximum(s - a**2, 0)
    b = heavy_ball(state.get("momentum_buffer"), normalized(g, variance, options), options)
    return p - options["lr"] * b, {"square_avg": s, "momentum_buffer": b, "grad_avg": a}


def adam_update(m: Array, v: Array, t: int, options: Options) -> Array:
    beta1, beta2 = options["betas"]
    m_hat = m / (1 - beta1**t)
    v_hat = v / (1 - beta2**t)
    update: Array = options["lr"] * m_hat / (np.sqrt(v_hat + options["eps_root"]) + options["eps"])
    return update


@rule
def adam(p: Array, g: Array, state: State, t: int, options: Options) -> tuple[Array, State]:
    m = moving_average(state.get("exp_avg"), g, options["betas"][0])
    v = moving_average(state.get("exp_avg_sq"), g**2, options["betas"][1])
    return p - cautious(adam_update(m, v, t, options), g, options), {"exp_avg": m, "exp_avg_sq": v}


@rule
def amsgrad(p: Array, g: Array, state: State, t: int, options: Options) -> tuple[Array, State]:
    m = moving_average(state.get("exp_avg"), g, options["betas"][0])
    v = moving_average(state.get("exp_avg_sq"), g**2, options["betas"][1])
    largest = np.maximum(state.get("max_exp_avg_sq", np.zeros_like(v)), v)
    update = cautious(adam_update(m, largest, t, options), g, options)
    return p - update, {"exp_avg": m, "exp_avg_sq": v, "max_exp_avg_sq": largest}


@rule
def lion(p: Array, g: Array, state: State, t: int, options: Options) -> tuple[Array, State]:
    beta1, beta2 = options["betas"]
    m = state.get("exp_avg", np.zeros_like(p))
    update = cautious(np.sign(beta1 * m + (1 - beta1) * g), g, options)
    return p - options["lr"] * update, {"exp_avg": beta2 * m + (1 - beta2) * g}


def trusted(p: Array, g: Array, options: Options) -> Array:
    decay, ratio = options["weight_decay"], 1.0
    norm_p, norm_g = np.linalg.norm(p), np.linalg.norm(g)
    if decay != 0 or options["always_adapt"]:
        if norm_p > 0 and norm_g > 0:
            ratio = float(options["trust_coeff"] * norm_p / (norm_g + decay * norm_p + options["eps"]))
        if options["trust_clip"]:
            ratio = min(ratio / options["lr"], 1.0)
    scaled: Array = (g + decay * p) * ratio
    return scaled


@rule
def lars(p: Array, g: Array, state: State, t: int, options: Options) -> tuple[Array, State]:
    return p - options["lr"] * trusted(p, g, options), {}


@rule
def lars_momentum(p: Array, g: Array, state: State, t: int, options: Options) -> tuple[Array, State]:
    scaled, old, mu = trusted(p, g, options), state.get("momentum_buffer"), options["momentum"]
    v = scaled if old is None else mu * old + (1 - options["dampening"]) * scaled
    return p - options["lr"] * (scaled + mu * v if options["nesterov"] else v), {"momentum_buffer": v}


@rule
def lamb(p: Array, g: Array, state: State, t: int, options: Options) -> tuple[Array, State]:
    beta1, beta2 = options["betas"]
    decay = options["weight_decay"]
    m = beta1 * state.get("exp_avg", np.zeros_like(p)) + (1 - beta1 if options["grad_averaging"] else 1) * g
    v = moving_average(state.get("exp_avg_sq"), g**2, beta2)
    corrects = options["bias_correction"]
    m_hat, v_hat = (m / (1 - beta1**t), v / (1 - beta2**t)) if corrects else (m, v)
    w = cautious(m_hat / (np.sqrt(v_hat) + options["eps"]), g, options)
    if not options["decoupled_weight_decay"]:
        w = w + decay * p
    ratio = 1.0
    if decay != 0 or options["always_adapt"]:
        norm_p, norm_w = np.linalg.norm(p), np.linalg.norm(w)
        if norm_p > 0 and norm_w > 0:
            ratio = float(norm_p / norm_w)
        if options["trust_clip"]:
            ratio = min(ratio, 1.0)
    return p - options["lr"] * ratio * w, {"exp_avg": m, "exp_avg_sq": v}


@rule
def stable_adamw(p: Array, g: Array, state: State, t: int, options: Options) -> tuple[Array, State]:
    beta1, beta2 = (beta * (1 - beta ** (t - 1)) / (1 - beta**t) for beta in options["betas"])
    m = moving_average(state.get("exp_avg"), g, beta1)
    v = moving_average(state.get("exp_avg_sq"), g**2, beta2)
    rate = options["lr"]
    if g.size:
        rate /= max(1.0, float(np.sqrt(np.mean(g**2 / np.maximum(v, options["eps"] ** 2)))))
    if options["decoupled_weight_decay"] and options["weight_decay"] != 0:
        p = decayed("stable_adamw", p, g, state, t, options, rate)
    return p - rate * cautious(m / (np.sqrt(v) + options["eps"]), g, options), {"exp_avg": m, "exp_avg_sq": v}


def schedule_free(y: Array, u: Array, z: Array, beta: float, options: Options) -> tuple[Array, Array]:
    k = options["k"] + 1
    lr = options["lr"] * min(1.0, k / options["warmup_steps"] if options["warmup_steps"] else 1.0)
    weight = k ** options["r"] * max(lr, options["lr_max"]) ** options["weight_lr_power"]
    total = options["weight_sum"] + weight
    c = weight / total if total != 0 else 0.0
    return (1 - c) * y + c * z + lr * (beta * (1 - c) - 1) * u, z - lr * u


@rule
def schedule_free_sgd(p: Array, g: Array, state: State, t: int, options: Options) -> tuple[Array, State]:
    p, z = schedule_free(p, g, state.get("z", p), options["momentum"], options)
    return p, {"z": z}


@rule
def schedule_free_adamw(p: Array, g: Array, state: State, t: int, options: Options) -> tuple[Array, State]:
    beta1, beta2 = options["betas"]
    v = moving_average(state.get("exp_avg_sq"), g**2, beta2)
    u = g / (np.sqrt(v / (1 - beta2 ** (options["k"] + 1))) + options["eps"]) + options["weight_decay"] * p
    p, z = schedule_free(p, u, state.get("z", p), beta1, options)
    return p, {"z": z, "exp_avg_sq": v}


@rule
def prodigy(p: Array, g: Array, state: State, t: int, options: Options) -> tuple[Array, State]:
    (beta1, beta2), beta3 = options["betas"], options["beta3"]
    beta3 = math.sqrt(beta2) if beta3 is None else beta3
    d, d0 = options.get("d") or options["d0"], options["d0"]
    rate = d * options["lr"]
    if options["use_bias_correction"]:
        rate *= math.sqrt(1 - beta2 ** (options["k"] + 1)) / (1 - beta1 ** (options["k"] + 1))
    zero, p0 = np.zeros_like(p), state.get("p0", p)
    if options["lr"] == 0:
        return p, {"exp_avg": zero, "exp_avg_sq": zero, "s": zero, "p0": p0, **state}
    m = beta1 * state.get("exp_avg", zero) + d * (1 - beta1) * g
    v = beta2 * state.get("exp_avg_sq", zero) + d**2 * (1 - beta2) * g**2
    s = beta3 * state.get("s", zero) + d / d0 * (d if options["safeguard_warmup"] else rate) * g
    new = {"exp_avg": m, "exp_avg_sq": v, "s": s, "p0": p0}
    total = np.abs(s).sum()
    if total == 0:
        return p, new
    d_hat = options["d_coef"] * (beta3 * options["d_numerator"] + d / d0 * rate * np.sum(g * (p0 - p))) / total
    d_max = max(options.get("d_max") or d0, d_hat)
    d = min(d_max, (max(d, d_hat) if d == d0 else d) * options["growth_rate"])
    if options["decoupled_weight_decay"]:
        p = p * (1 - rate * options["weight_decay"])
    return p - rate * (d * g if beta1 == 0 else m) / (np.sqrt(v) + d * options["eps"]), new
