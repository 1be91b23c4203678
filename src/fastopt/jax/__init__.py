"""fastopt for JAX: optimizers whose step, compiled by `jax.jit`, is one call of fastopt's kernels, in place.

>>> import jax, jax.numpy as jnp, fastopt.jax
>>> opt = fastopt.jax.SGD(lr=0.1)
>>> params = {"w": jnp.array([5.0])}
>>> step = jax.jit(opt.step, donate_argnums=(0, 2))
>>> params, state = step(params, {"w": jnp.array([2.0])}, opt.init(params))
>>> params["w"]
Array([4.8], dtype=float32)
"""

from typing import TYPE_CHECKING

from fastopt.classes import when_asked_for
from fastopt.jax import optimizers as optimizers
from fastopt.jax.optimizer import Optimizer, State

if TYPE_CHECKING:
    from fastopt.jax.optimizers import *  # noqa: F403
    from fastopt.jax.optimizers import __all__ as __all__
else:
    __all__ = ()

__all__ += ("Optimizer", "State")

if not TYPE_CHECKING:  # (to which every name would be an optimizer)
    __getattr__, __dir__ = when_asked_for(globals(), lambda: optimizers.__all__, lambda name: getattr(optimizers, name))
