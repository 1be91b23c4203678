"""An Equinox model: its arrays are what is stepped, in place; the rest of it stays as it is.

python examples/jax_equinox.py
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

import fastopt.jax
from fastopt.schedules import warmup_cosine

STEPS = 300

optimizer = fastopt.jax.AdamW(lr=warmup_cosine(1e-2, warmup=20, total=STEPS), clip_norm=1.0)


def loss_of(model: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """Return the mean square of the errors."""
    return jnp.mean((jax.vmap(model)(x) - y) ** 2)


@eqx.filter_jit(donate="all-except-first")
def train_step(data: tuple[jax.Array, jax.Array], model: Any, state: fastopt.jax.State) -> tuple[Any, Any, jax.Array]:
    """Return model and state after a step, and the loss before it."""
    loss, grads = eqx.filter_value_and_grad(loss_of)(model, *data)
    params, rest = eqx.partition(model, eqx.is_inexact_array)
    params, state = optimizer.step(params, grads, state)
    return eqx.combine(params, rest), state, loss


def train() -> list[float]:
    """Fit a sine; return the losses."""
    x = jnp.linspace(-3, 3, 256)[:, None]
    model = eqx.nn.MLP(1, 1, width_size=32, depth=2, activation=jnp.tanh, key=jax.random.key(0))
    state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))
    losses = []
    for _ in range(STEPS):
        model, state, loss = train_step((x, jnp.sin(2 * x)), model, state)
        losses.append(float(loss))
    return losses


if __name__ == "__main__":
    for step, loss in enumerate(train()):
        if step % 25 == 0:
            print(f"step {step:3d}  loss {loss:.5f}")
