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


OWN_DECAY = {"lars", "lars_momentum", "lamb", "schedule_free_adamw", "adopt", "laprop", "adan"}
"""Rules that apply weight decay themselves, unless it is decoupled."""

OWN_DECOUPLED_DECAY = {"stable_adamw", "prodigy", "adopt", "laprop", "adan", "adafactor", "adafactor_vector"}
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
    if options.get("weight_decay", 0) != 0:
        if options.get("decoupled_weight_decay"):
            if name not in OWN_DECOUPLED_DECAY:
                p = shrunk(name, p, g, state, t, options)
        elif name not in OWN_DECAY:
            g = g + options["weight_decay"] * p
    return RULES[name](p, g, state, t, options)


def shrunk(name: str, p: Array, g: Array, state: State, t: int, options: Options, rate: float | None = None) -> Array:
    if rate is None:
        rate = 1.0 if options.get("fixed_decay") else options["lr"]
    if options.get("corrected_weight_decay"):
        rate *= options["lr"] / options["peak_lr"]
    less: Array = p * (1 - rate * options["weight_decay"])
    if not options.get("cautious_decay"):
        return less
    after, _ = RULES[name](p, g, state, t, {**options, "cautious": False, "weight_decay": 0})
    found: Array = np.where((p - after) * p >= 0, less, p)
    return found


def cautious(update: Array, g: Array, options: Options) -> Array:
    if not options.get("cautious"):
        return update
    agrees = update * g > 0
    masked: Array = update * agrees / max(float(np.mean(agrees)), 1e-3) if g.size else update
    return masked


def decayed(p: Array, g: Array, options: Options) -> tuple[Array, Array]:
    """Of the parameter and the gradient, the one that weight decay is done to, done."""
    decay = options.get("weight_decay", 0)
    if options.get("decoupled_weight_decay"):
        return p * (1 - decay * (1 if options.get("fixed_decay") else options["lr"])), g
    return p, g + decay * p


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


def row_mean(x: Array) -> Array:
    mean: Array = x.mean(axis=tuple(range(1, x.ndim)), keepdims=True)
    return mean


@rule
def adagrad_rowwise(p: Array, g: Array, state: State, t: int, options: Options) -> tuple[Array, State]:
    so_far = state.get("row_sum")
    total = row_mean(g**2) + (options["initial_accumulator_value"] if so_far is None else so_far)
    lr = options["lr"] / (1 + (t - 1) * options["lr_decay"])
    return p - lr * g / (np.sqrt(total + options["eps_root"]) + options["eps"]), {"row_sum": total}


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
    if options.get("eps_hat"):
        return np.asarray(options["lr"] * np.sqrt(1 - beta2**t) / (1 - beta1**t) * m / (np.sqrt(v) + options["eps"]))
    update: Array = options["lr"] * m_hat / (np.sqrt(v_hat + options.get("eps_root", 0)) + options["eps"])
    return update


@rule
def adam(p: Array, g: Array, state: State, t: int, options: Options) -> tuple[Array, State]:
    m = moving_average(state.get("exp_avg"), g, options["betas"][0])
    v = moving_average(state.get("exp_avg_sq"), g**2, options["betas"][1])
    return p - cautious(adam_update(m, v, t, options), g, options), {"exp_avg": m, "exp_avg_sq": v}


@rule
def adam_rowwise(p: Array, g: Array, state: State, t: int, options: Options) -> tuple[Array, State]:
    beta1, beta2 = options["betas"]
    m = moving_average(state.get("exp_avg"), g, beta1)
    v = moving_average(state.get("row_exp_avg_sq"), row_mean(g**2), beta2)
    u = normalized(m / (1 - beta1**t), v / (1 - beta2**t), options)
    return p - options["lr"] * u, {"exp_avg": m, "row_exp_avg_sq": v}


@rule
def amsgrad(p: Array, g: Array, state: State, t: int, options: Options) -> tuple[Array, State]:
    m = moving_average(state.get("exp_avg"), g, options["betas"][0])
    v = moving_average(state.get("exp_avg_sq"), g**2, options["betas"][1])
    largest = np.maximum(state.get("max_exp_avg_sq", np.zeros_like(v)), v)
    update = cautious(adam_update(m, largest, t, options), g, options)
    return p - update, {"exp_avg": m, "exp_avg_sq": v, "max_exp_avg_sq": largest}


@rule
def nadam(p: Array, g: Array, state: State, t: int, options: Options) -> tuple[Array, State]:
    beta1, beta2 = options["betas"]
    m = moving_average(state.get("exp_avg"), g, beta1)
    v = moving_average(state.get("exp_avg_sq"), g**2, beta2)
    mu, mu_next = (beta1 * (1 - 0.5 * 0.96 ** (at * options["momentum_decay"])) for at in (t, t + 1))
    product = state.get("mu_product", np.ones(())) * mu
    ahead = mu_next * m / (1 - product * mu_next) + (1 - mu) * g / (1 - product)
    scaled = ahead / (np.sqrt(v / (1 - beta2**t)) + options["eps"])
    return p - options["lr"] * scaled, {"exp_avg": m, "exp_avg_sq": v, "mu_product": product}


def average_length(t: int, options: Options) -> tuple[float, float]:
    """RAdam's: of the average of squares, and what it comes to in the end."""
    beta2 = options["betas"][1]
    limit = 2 / (1 - beta2) - 1
    return limit - 2 * t * beta2**t / (1 - beta2**t), limit


def rectified(m: Array, v: Array, t: int, options: Options) -> Array:
    n, limit = average_length(t, options)
    beta1, beta2 = options["betas"]
    r = np.sqrt((n - 4) * (n - 2) * limit / ((limit - 4) * (limit - 2) * n))
    update: Array = r * m / (1 - beta1**t) * np.sqrt(1 - beta2**t) / (np.sqrt(v) + options["eps"])
    return update


@rule
def radam(p: Array, g: Array, state: State, t: int, options: Options) -> tuple[Array, State]:
    beta1, beta2 = options["betas"]
    m = moving_average(state.get("exp_avg"), g, beta1)
    v = moving_average(state.get("exp_avg_sq"), g**2, beta2)
    enough = average_length(t, options)[0] > 5
    u = rectified(m, v, t, options) if enough else m / (1 - beta1**t)
    return p - options["lr"] * u, {"exp_avg": m, "exp_avg_sq": v}


@rule
def adamax(p: Array, g: Array, state: State, t: int, options: Options) -> tuple[Array, State]:
    beta1, beta2 = options["betas"]
    m = moving_average(state.get("exp_avg"), g, beta1)
    u = np.maximum(beta2 * state.get("exp_inf", np.zeros_like(p)), np.abs(g) + options["eps"])
    return p - options["lr"] / (1 - beta1**t) * m / u, {"exp_avg": m, "exp_inf": u}


@rule
def adadelta(p: Array, g: Array, state: State, t: int, options: Options) -> tuple[Array, State]:
    rho, eps = options["rho"], options["eps"]
    s = moving_average(state.get("square_avg"), g**2, rho)
    d = state.get("acc_delta", np.zeros_like(p))
    u = np.sqrt(d + eps) / np.sqrt(s + eps) * g
    return p - options["lr"] * u, {"square_avg": s, "acc_delta": moving_average(d, u**2, rho)}


@rule
def asgd(p: Array, g: Array, state: State, t: int, options: Options) -> tuple[Array, State]:
    lr, lambd = options["lr"], options["lambd"]
    eta, mu = (state[name] if t > 1 else np.array(first) for name, first in (("eta", lr), ("mu", 1.0)))
    p = p * (1 - lambd * eta) - eta * g
    ax = state.get("ax", np.zeros_like(p))
    eta = np.array(lr / (1 + lambd * lr * t) ** options["alpha"])
    return p, {"ax": ax + mu * (p - ax), "eta": eta, "mu": np.array(1 / max(1, t - options["t0"]))}


@rule
def rprop(p: Array, g: Array, state: State, t: int, options: Options) -> tuple[Array, State]:
    size = state["step_size"] if t > 1 else np.full_like(p, options["lr"])
    agreement = g * state.get("prev", np.zeros_like(p))
    factor = np.where(agreement < 0, options["etas"][0], np.where(agreement > 0, options["etas"][1], 1 + 0 * agreement))
    size = np.clip(size * factor, *options["step_sizes"])
    g = np.where(agreement < 0, 0, g)
    return p - np.sign(g) * size, {"prev": g, "step_size": size}


@rule
def lion(p: Array, g: Array, state: State, t: int, options: Options) -> tuple[Array, State]:
    beta1, beta2 = options["betas"]
    m = state.get("exp_avg", np.zeros_like(p))
    update = cautious(np.sign(beta1 * m + (1 - beta1) * g), g, options)
    return p - options["lr"] * update, {"exp_avg": beta2 * m + (1 - beta2) * g}


@rule
def signsgd(p: Array, g: Array, state: State, t: int, options: Options) -> tuple[Array, State]:
    return p - options["lr"] * np.sign(g), {}


@rule
def signum(p: Array, g: Array, state: State, t: int, options: Options) -> tuple[Array, State]:
    m = moving_average(state.get("momentum_buffer"), g, options["momentum"])
    return p - options["lr"] * np.sign(m), {"momentum_buffer": m}


@rule
def ademamix(p: Array, g: Array, state: State, t: int, options: Options) -> tuple[Array, State]:
    beta1, beta2, beta3 = options["betas"]
    alpha = options["alpha"]
    if options["t_alpha"] is not None:
        alpha = min(t * alpha / options["t_alpha"], alpha)
    if options["t_beta3"] is not None:
        part, fast, slow = t / options["t_beta3"], np.log(beta1), np.log(beta3)
        beta3 = min(np.exp(fast * slow / ((1 - part) * slow + part * fast)), beta3)
    m = moving_average(state.get("exp_avg"), g, beta1)
    v = moving_average(state.get("exp_avg_sq"), g**2, beta2)
    long = moving_average(state.get("exp_avg_slow"), g, beta3)
    update = (m / (1 - beta1**t) + alpha * long) / (np.sqrt(v / (1 - beta2**t)) + options["eps"])
    return p - options["lr"] * update, {"exp_avg": m, "exp_avg_sq": v, "exp_avg_slow": long}


@rule
def adopt(p: Array, g: Array, state: State, t: int, options: Options) -> tuple[Array, State]:
    beta1, beta2 = options["betas"]
    shrunk, g = decayed(p, g, options)
    if t == 1:
        return p, {"exp_avg": np.zeros_like(p), "exp_avg_sq": g**2}
    n = g / np.maximum(np.sqrt(state["exp_avg_sq"]), options["eps"])
    if options["clip_exp"] is not None:
        bound = float(t - 1) ** options["clip_exp"]
        n = np.clip(n, -bound, bound)
    m = moving_average(state["exp_avg"], n, beta1)
    v = moving_average(state["exp_avg_sq"], g**2, beta2)
    return shrunk - options["lr"] * m, {"exp_avg": m, "exp_avg_sq": v}


@rule
def laprop(p: Array, g: Array, state: State, t: int, options: Options) -> tuple[Array, State]:
    (beta1, beta2), lr = options["betas"], options["lr"]
    rates = moving_average(state.get("exp_avg_lr_1"), np.array(lr), beta1)
    ones = moving_average(state.get("exp_avg_lr_2"), np.ones(()), beta2)
    v = moving_average(state.get("exp_avg_sq"), g**2, beta2)
    m = moving_average(state.get("exp_avg"), lr * g / (np.sqrt(v / ones) + options["eps"]), beta1)
    p = (p - lr / rates * m) * (1 - lr * options["weight_decay"])
    return p, {"exp_avg": m, "exp_avg_sq": v, "exp_avg_lr_1": rates, "exp_avg_lr_2": ones}


def belief(p: Array, g: Array, state: State, t: int, options: Options) -> tuple[Array, State]:
    (beta1, beta2), lr, eps = options["betas"], options["lr"], options["eps"]
    m = moving_average(state.get("exp_avg"), g, beta1)
    s = moving_average(state.get("exp_avg_var"), (g - m) ** 2, beta2) + eps
    largest = np.maximum(state.get("max_exp_avg_var", np.zeros_like(p)), s)
    if not options["rectify"]:
        root = np.sqrt((largest if options["amsgrad"] else s) / (1 - beta2**t))
        p = p - lr * m / (1 - beta1**t) / (root + eps)
    elif average_length(t, options)[0] >= 5:
        p = p - lr * rectified(m, s, t, options)
    elif options["degenerated_to_sgd"]:
        p = p - lr * m / (1 - beta1**t)
    return p, {"exp_avg": m, "exp_avg_var": s, "max_exp_avg_var": largest}


@rule
def adabelief(p: Array, g: Array, state: State, t: int, options: Options) -> tuple[Array, State]:
    p, state = belief(p, g, state, t, options)
    return p, {name: state[name] for name in ("exp_avg", "exp_avg_var")}


@rule
def adabelief_amsgrad(p: Array, g: Array, state: State, t: int, options: Options) -> tuple[Array, State]:
    return belief(p, g, state, t, options)


@rule
def adan(p: Array, g: Array, state: State, t: int, options: Options) -> tuple[Array, State]:
    (beta1, beta2, beta3), decay = options["betas"], options["lr"] * options["weight_decay"]
    d = g + (state["neg_pre_grad"] if t > 1 else -g)
    m = moving_average(state.get("exp_avg"), g, beta1)
    e = moving_average(state.get("exp_avg_diff"), d, beta2)
    v = moving_average(state.get("exp_avg_sq"), (g + beta2 * d) ** 2, beta3)
    ahead = m / (1 - beta1**t) + beta2 * e / (1 - beta2**t)
    update = options["lr"] * ahead / (np.sqrt(v / (1 - beta3**t)) + options["eps"])
    p = p * (1 - decay) - update if options["no_prox"] else (p - update) / (1 + decay)
    return p, {"exp_avg": m, "exp_avg_sq": v, "exp_avg_diff": e, "neg_pre_grad": -g}


@rule
def yogi(p: Array, g: Array, state: State, t: int, options: Options) -> tuple[Array, State]:
    (beta1, beta2), start = options["betas"], np.full_like(p, options["initial_accumulator"])
    m = moving_average(state.get("exp_avg", start), g, beta1)
    v = state.get("exp_avg_sq", start)
    v = v - (1 - beta2) * np.sign(v - g**2) * g**2
    update = m / (1 - beta1**t) / (np.sqrt(v / (1 - beta2**t)) + options["eps"])
    return p - options["lr"] * update, {"exp_avg": m, "exp_avg_sq": v}


@rule
def ftrl(p: Array, g: Array, state: State, t: int, options: Options) -> tuple[Array, State]:
    lr, penalty = options["lr"], options["lambda_1"]
    z, before = (state.get(name, np.zeros_like(p)) for name in ("z", "n"))
    n = before + g**2
    z = z + g - (np.sqrt(n) - np.sqrt(before)) / lr * p
    p = (penalty * np.sign(z) - z) / ((options["beta"] + np.sqrt(n)) / lr + options["lambda_2"])
    return np.where(np.abs(z) <= penalty, 0, p), {"z": z, "n": n}


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
        p = shrunk("stable_adamw", p, g, state, t, options, rate)
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


POLAR_EXPRESS = [
    *[(8.15655, -22.48329, 15.87877), (4.04293, -2.80892, 0.50002), (3.89167, -2.77248, 0.50606)],
    *[(3.28575, -2.36813, 0.46449), (2.34654, -1.70978, 0.42324)],
]


@rule
def muon(p: Array, g: Array, state: State, t: int, options: Options) -> tuple[Array, State]:
    """What the iterations do to a matrix they do to each of its singular values."""
    mu = options["momentum"]
    m = mu * state.get("momentum_buffer", np.zeros_like(p)) + (1 - mu) * g
    w = mu * m + (1 - mu) * g if options["nesterov"] else m
    left, values, right = np.linalg.svd(w / max(float(np.linalg.norm(w)), options["eps"]), full_matrices=False)
    express = options["coefficients"] == "polar_express"
    values = values / 1.01 if express and options["ns_steps"] else values
    for step in range(options["ns_steps"]):
        a, b, c = POLAR_EXPRESS[min(step, 4)] if express else options["ns_coefficients"]
        values = a * values + b * values**3 + c * values**5
    orthogonal: Array = left @ np.diag(values) @ right
    new = {"momentum_buffer": m}
    if options["normuon"]:
        beta = options["normuon_beta"]
        v = beta * state.get("second_momentum_buffer", np.zeros(len(p))) + (1 - beta) * (orthogonal**2).mean(axis=1)
        even = orthogonal / (np.sqrt(v) + options["eps"])[:, None]
        orthogonal = even * np.linalg.norm(orthogonal) / np.linalg.norm(even)
        new["second_momentum_buffer"] = v
    rows, columns = p.shape
    ratio = (
        0.2 * max(rows, columns) ** 0.5
        if options["adjust_lr_fn"] == "match_rms_adamw"
        else max(1, rows / columns) ** 0.5
    )
    return p - options["lr"] * ratio * orthogonal, new


@rule
def adafactor(p: Array, g: Array, state: State, t: int, options: Options) -> tuple[Array, State]:
    kept = 1 - t ** options["beta2_decay"]
    eps1 = options["eps"][0] or np.finfo(float).eps
    rows = moving_average(state.get("row_var"), np.mean(g**2, axis=-1, keepdims=True), kept)
    columns = moving_average(state.get("col_var"), np.mean(g**2, axis=-2, keepdims=True), kept)
    v = rows * columns / np.maximum(np.mean(rows, axis=-2, keepdims=True), eps1)
    return by_factors(p, g, v, eps1, t, options), {"row_var": rows, "col_var": columns}


@rule
def adafactor_vector(p: Array, g: Array, state: State, t: int, options: Options) -> tuple[Array, State]:
    v = moving_average(state.get("variance"), g**2, 1 - t ** options["beta2_decay"])
    return by_factors(p, g, v, options["eps"][0] or np.finfo(float).eps, t, options), {"variance": v}


def by_factors(p: Array, g: Array, v: Array, eps1: float, t: int, options: Options) -> Array:
    if not p.size:
        return p
    u = g / np.sqrt(np.maximum(v, eps1**2))
    rate = max(options["eps"][1], math.sqrt(np.mean(p**2))) * min(options["lr"], 1 / math.sqrt(t))
    update: Array = rate * u / max(1.0, math.sqrt(np.mean(u**2)) / options["d"])
    kept: Array = decayed(p, g, options)[0]
    return kept - update
