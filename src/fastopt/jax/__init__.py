"""fastopt for JAX: optimizers whose step, compiled by `jax.jit`, is one call of fastopt's kernels, in place.

>>> import jax, jax.numpy as jnp, fastopt.jax
>>> opt = fastopt.jax.SGD(lr=0.1)
>>> params = {"w": jnp.array([5.0])}
>>> step = jax.jit(opt.step, donate_argnums=(0, 2))
>>> params, state = step(params, {"w": jnp.array([2.0])}, opt.init(params))
>>> params["w"]
Array([4.8], dtype=float32)
"""

from fastopt.jax import optimizers as optimizers
from fastopt.jax.optimizer import Optimizer, State
from fastopt.jax.optimizers import *  # noqa: F403
from fastopt.jax.optimizers import __all__ as __all__  # which type checkers can follow

__all__ += ("Optimizer", "State")
