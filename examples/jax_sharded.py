"""Parameters and states shared out to the devices of a mesh, each of which steps its own part, in place.

python examples/jax_sharded.py

Here the devices are two halves of the CPU. `clip_norm` would be the norm of a device's part, so that the gradients are
clipped before, by the norm over all.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import fastopt.jax

DEVICES = 2
STEPS = 200
MAX_NORM = 1.0

optimizer = fastopt.jax.AdamW(lr=1e-2)


def sharded(mesh: jax.sharding.Mesh) -> tuple[Any, Any]:
    """Return `init` and `step` for parameters whose first dimension is shared out."""
    part = P("shard")
    state = fastopt.jax.State(P(), part, shapes=P())

    def step(params: Any, grads: Any, state: Any) -> Any:
        squares = sum(jnp.sum(grad**2) for grad in jax.tree.leaves(grads))
        scale = jnp.minimum(1.0, MAX_NORM / (jnp.sqrt(jax.lax.psum(squares, "shard")) + 1e-6))
        return optimizer.step(params, jax.tree.map(lambda grad: scale * grad, grads), state)

    return (
        jax.shard_map(optimizer.init, mesh=mesh, in_specs=part, out_specs=state, check_vma=False),
        jax.shard_map(step, mesh=mesh, in_specs=(part, part, state), out_specs=(part, state), check_vma=False),
    )


def loss_of(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """Return the mean square of the errors."""
    return jnp.mean((jnp.tanh(x @ params["hidden"]) @ params["out"] - y) ** 2)


def train() -> tuple[list[float], Any]:
    """Fit a sine; return the losses and the parameters."""
    mesh = jax.make_mesh((DEVICES,), ("shard",))
    init, step = sharded(mesh)

    @partial(jax.jit, donate_argnums=(0, 1))
    def train_step(params: Any, state: Any, x: jax.Array, y: jax.Array) -> tuple[Any, Any, jax.Array]:
        loss, grads = jax.value_and_grad(loss_of)(params, x, y)
        return *step(params, grads, state), loss

    x = jnp.linspace(-3, 3, 256)[:, None] ** jnp.arange(4) / 3.0 ** jnp.arange(4)
    keys = jax.random.split(jax.random.key(0))
    params = {"hidden": jax.random.normal(keys[0], (4, 64)), "out": jax.random.normal(keys[1], (64, 1)) / 8}
    params = jax.device_put(params, NamedSharding(mesh, P("shard")))
    state = jax.jit(init)(params)
    losses = []
    for _ in range(STEPS):
        params, state, loss = train_step(params, state, x, jnp.sin(6 * x[:, 1:2]))
        losses.append(float(loss))
    return losses, params


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", DEVICES)
    losses, params = train()
    for step, loss in enumerate(losses):
        if step % 25 == 0:
            print(f"step {step:3d}  loss {loss:.5f}")
    for name, param in params.items():
        print(name, [f"{shard.data.shape} on {shard.device}" for shard in param.addressable_shards])
