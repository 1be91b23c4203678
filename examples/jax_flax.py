"""Flax's TrainState with fastopt's step in the place of optax's update: three lines more.

python examples/jax_flax.py
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.training import train_state

import fastopt.jax
from fastopt.schedules import warmup_cosine

STEPS = 300


class TrainState(train_state.TrainState):
    """One whose parameters and states are written in place."""

    def apply_gradients(self, *, grads: Any, **changes: Any) -> "TrainState":
        """Return what is after a step."""
        params, opt_state = self.tx.step(self.params, grads, self.opt_state)
        return self.replace(step=self.step + 1, params=params, opt_state=opt_state, **changes)


class Curve(nn.Module):
    """From numbers to numbers."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return what belongs to x."""
        for _ in range(2):
            x = nn.tanh(nn.Dense(32)(x))
        return nn.Dense(1)(x)


@partial(jax.jit, donate_argnums=0)
def train_step(state: TrainState, x: jax.Array, y: jax.Array) -> tuple[TrainState, jax.Array]:
    """Return the state after a step, and the loss before it."""

    def loss_of(params: Any) -> jax.Array:
        return jnp.mean((state.apply_fn(params, x) - y) ** 2)

    loss, grads = jax.value_and_grad(loss_of)(state.params)
    return state.apply_gradients(grads=grads), loss


def train() -> list[float]:
    """Fit a sine; return the losses."""
    x = jnp.linspace(-3, 3, 256)[:, None]
    model = Curve()
    optimizer = fastopt.jax.AdamW(lr=warmup_cosine(1e-2, warmup=20, total=STEPS), clip_norm=1.0)
    state = TrainState.create(apply_fn=model.apply, params=model.init(jax.random.key(0), x), tx=optimizer)
    losses = []
    for _ in range(STEPS):
        state, loss = train_step(state, x, jnp.sin(2 * x))
        losses.append(float(loss))
    return losses


if __name__ == "__main__":
    for step, loss in enumerate(train()):
        if step % 25 == 0:
            print(f"step {step:3d}  loss {loss:.5f}")
