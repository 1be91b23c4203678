"""The contestants of torch and of other libraries, each there only if its library is."""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from typing import Any, ClassVar

import numpy as np

from fastopt.benchmark.contestants import Contestant
from fastopt.benchmark.tasks import MAX_NORM, Array, Arrays, Task


class OnTensors(Contestant):
    """Works on torch's tensors; a subclass says which class of which module steps them.

    The parts of a step that the optimizer does not do itself are torch's: `clip_grad_norm_` and `zero_grad`.
    """

    modules: ClassVar[tuple[str, ...]] = ("torch",)

    @classmethod
    def optimizer(cls, task: Task) -> Callable[..., Any] | None:
        """Return what makes the optimizer of a task from parameters and options, None if there is nothing."""
        raise NotImplementedError

    @classmethod
    def obstacle(cls, task: Task) -> str | None:
        """Return why it cannot take part."""
        missing = super().obstacle(task)
        return missing or (None if cls.optimizer(task) else f"has no {task.method} in {task.dtype} on the CPU")

    def __init__(self, task: Task, arrays: Arrays) -> None:
        import torch

        dtype = getattr(torch, task.dtype)
        self.params = [torch.from_numpy(array).to(dtype, copy=True).requires_grad_() for array in arrays.params]
        for param, grad in zip(self.params, arrays.grads, strict=True):
            param.grad = torch.from_numpy(grad).to(dtype, copy=True)
        self.step = self.stepping(task)

    def stepping(self, task: Task) -> Callable[[], Any]:
        """Return what a training loop does after the backward pass."""
        from torch.nn.utils import clip_grad_norm_

        make = self.optimizer(task)
        assert make is not None
        optimizer = make(self.params, **task.method.options)
        step: Callable[[], Any] = optimizer.step

        def clip_and_step() -> None:
            clip_grad_norm_(self.params, MAX_NORM)
            step()

        def clip_step_and_zero() -> None:
            clip_grad_norm_(self.params, MAX_NORM)
            step()
            optimizer.zero_grad(set_to_none=False)

        return {"step": step, "clip": clip_and_step, "clip+zero": clip_step_and_zero}[task.action]

    def load_gradients(self, grads: list[Array]) -> None:
        """Overwrite the gradients."""
        import torch

        for param, grad in zip(self.params, grads, strict=True):
            assert param.grad is not None
            param.grad.copy_(torch.from_numpy(grad))

    def values(self) -> list[Array]:
        """Return the parameters as arrays; those of bfloat16 are copies in float32."""
        import torch

        return [(p.float() if p.dtype == torch.bfloat16 else p).detach().numpy() for p in self.params]


class FastoptTorch(OnTensors):
    """`fastopt.torch`'s optimizers, clipping and zeroing in the step."""

    name = "fastopt.torch"

    @classmethod
    def optimizer(cls, task: Task) -> Callable[..., Any] | None:
        """Return its class."""
        import fastopt.torch

        return getattr(fastopt.torch, task.method.optimizer, None)

    def stepping(self, task: Task) -> Callable[[], Any]:
        """Return the step, which does everything."""
        make = self.optimizer(task)
        assert make is not None
        clipping = {"clip_norm": MAX_NORM} if task.clips else {}
        step: Callable[[], Any] = make(
            self.params, **task.method.options, **clipping, zero_grad_in_step=task.zeroes
        ).step
        return step


class Torch(OnTensors):
    """`torch.optim` with no flags: what people get by default. On the CPU a loop over the parameters."""

    name = "torch"
    flags: ClassVar[dict[str, bool]] = {}

    def __init__(self, task: Task, arrays: Arrays) -> None:
        super().__init__(task, arrays)
        if task.method.cls.method.between:  # of bfloat16 are its products of matrices
            self.precision = 0.1

    @classmethod
    def optimizer(cls, task: Task) -> Callable[..., Any] | None:
        """Return the class with this contestant's flags, if it takes them and the task's options."""
        import torch.optim

        found = getattr(torch.optim, task.method.optimizer, None)
        if found is None or not {*cls.flags, *task.method.options} <= inspect.signature(found).parameters.keys():
            return None
        return partial(found, **cls.flags)


class TorchForeach(Torch):
    """`torch.optim` with `foreach=True`."""

    name = "torch foreach"
    flags: ClassVar[dict[str, bool]] = {"foreach": True}


class TorchFused(Torch):
    """`torch.optim` with `fused=True`."""

    name = "torch fused"
    flags: ClassVar[dict[str, bool]] = {"fused": True}


class DeepSpeed(OnTensors):
    """DeepSpeed's optimizers for parameters offloaded to the CPU, compiled when first used."""

    name = "DeepSpeed"
    modules = ("torch", "deepspeed", "ninja")
    # AdamW is their Adam, which is decoupled unless told otherwise.
    classes: ClassVar[dict[str, tuple[str, str, dict[str, Any]]]] = {
        "Adam": ("deepspeed.ops.adam", "DeepSpeedCPUAdam", {"adamw_mode": False}),
        "AdamW": ("deepspeed.ops.adam", "DeepSpeedCPUAdam", {"weight_decay": 0.01}),
        "Adagrad": ("deepspeed.ops.adagrad", "DeepSpeedCPUAdagrad", {}),
        "Lion": ("deepspeed.ops.lion", "DeepSpeedCPULion", {}),
    }

    @classmethod
    def optimizer(cls, task: Task) -> Callable[..., Any] | None:
        """Return its class."""
        if task.dtype == "float64" or task.method.all_options.get("amsgrad"):
            return None
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        return class_of(cls.classes, task)


class TorchAO(OnTensors):
    """torchao's optimizers with states of 8 bits, compiled by torch when first used."""

    name = "torchao 8 bit"
    modules = ("torch", "torchao")
    precision = 0.1
    classes: ClassVar[dict[str, tuple[str, str, dict[str, Any]]]] = {
        "Adam": ("torchao.optim", "Adam8bit", {}),
        "AdamW": ("torchao.optim", "AdamW8bit", {}),
    }

    @classmethod
    def optimizer(cls, task: Task) -> Callable[..., Any] | None:
        """Return its class."""
        return None if task.dtype == "float64" else class_of(cls.classes, task)


class BitsAndBytes(OnTensors):
    """bitsandbytes' optimizers with states of 32 bits."""

    name = "bitsandbytes"
    modules = ("torch", "bitsandbytes")
    classes: ClassVar[dict[str, tuple[str, str, dict[str, Any]]]] = {
        name: ("bitsandbytes.optim", f"{name}32bit", {})
        for name in ("Adam", "AdamW", "SGD", "RMSprop", "Adagrad", "Lion")
    }

    @classmethod
    def optimizer(cls, task: Task) -> Callable[..., Any] | None:
        """Return its class."""
        options = task.method.all_options
        if task.dtype == "float64" or options.get("amsgrad") or options.get("centered"):
            return None
        return class_of(cls.classes, task)


class Package(OnTensors):
    """The package that an optimizer is known from which torch does not have."""

    name = "its package"
    precision = 1e-5  # timm's LAMB adds 1e-6 to the norm that it clips by
    classes: ClassVar[dict[str, tuple[str, str, dict[str, Any]]]] = {
        "Lion": ("timm.optim.lion", "Lion", {}),
        "ADOPT": ("timm.optim.adopt", "Adopt", {}),
        "LaProp": ("timm.optim.laprop", "LaProp", {}),
        "AdaBelief": ("timm.optim.adabelief", "AdaBelief", {}),
        "Adan": ("timm.optim.adan", "Adan", {}),
        "LARS": ("timm.optim.lars", "Lars", {}),
        "LAMB": ("timm.optim.lamb", "Lamb", {}),
        "Signum": ("pytorch_optimizer", "SignSGD", {}),
        "Yogi": ("pytorch_optimizer", "Yogi", {}),
        "FTRL": ("pytorch_optimizer", "FTRL", {}),
        "StableAdamW": ("pytorch_optimizer", "StableAdamW", {}),
        "ScheduleFreeSGD": ("schedulefree", "SGDScheduleFree", {}),
        "ScheduleFreeAdamW": ("schedulefree", "AdamWScheduleFree", {}),
        "Prodigy": ("prodigyopt", "Prodigy", {}),
    }

    @classmethod
    def obstacle(cls, task: Task) -> str | None:
        """Return why it cannot take part."""
        module = cls.classes.get(task.method.optimizer, ("",))[0]
        package = module.partition(".")[0]
        if module and find_spec(package) is None:
            return f"{package} is not installed"
        try:
            return super().obstacle(task)
        except ImportError as error:
            return f"{package} cannot be imported: {error}"

    @classmethod
    def optimizer(cls, task: Task) -> Callable[..., Any] | None:
        """Return what makes one that trains."""
        found = class_of(cls.classes, task)
        return found and partial(cls.training, found)

    @staticmethod
    def training(make: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Return an optimizer, switched to training where it knows evaluation too."""
        optimizer = make(*arguments, **options)
        if hasattr(optimizer, "train"):
            optimizer.train()
        return optimizer


def class_of(classes: Mapping[str, tuple[str, str, dict[str, Any]]], task: Task) -> Callable[..., Any] | None:
    """Return the class for a task's optimizer out of a table of (module, class, options), None if it is not there."""
    if task.method.optimizer not in classes:
        return None
    module, name, options = classes[task.method.optimizer]
    return partial(getattr(importlib.import_module(module), name), **options)


class OnJax(Contestant):
    """A step under `jax.jit`, the buffers of parameters and states donated."""

    modules: ClassVar[tuple[str, ...]] = ("jax",)

    @classmethod
    def functions(cls, task: Task) -> tuple[Callable[[Any], Any], Callable[[Any, Any, Any], Any]]:
        """Return what makes a state of parameters, and the step, of parameters, gradients and state."""
        raise NotImplementedError

    def __init__(self, task: Task, arrays: Arrays) -> None:
        with few_cpus(task.threads):
            # The pool of threads is made now, once, as large as the number of CPUs.
            jax = importlib.import_module("jax")
            jax.config.update("jax_enable_x64", True)
            jax.devices()
        init, step = self.functions(task)

        def update(params: Any, state: Any, grads: Any) -> Any:
            zeros = jax.tree.map(jax.numpy.zeros_like, grads) if task.zeroes else None
            return *step(params, grads, state), zeros

        self.wait = jax.block_until_ready
        self.put = partial(jax.numpy.array, dtype=task.dtype)
        self.params = list(map(self.put, arrays.params))
        self.state = init(self.params)
        self.grads = list(map(self.put, arrays.grads))
        self.update = jax.jit(update, donate_argnums=(0, 1, 2) if task.zeroes else (0, 1))
        self.step = self.take_step

    def take_step(self) -> None:
        """Step, and wait for it."""
        self.params, self.state, zeros = self.update(self.params, self.state, self.grads)
        self.wait(self.params)
        self.grads = self.grads if zeros is None else zeros

    def load_gradients(self, grads: list[Array]) -> None:
        """Make new ones: arrays of JAX cannot be changed."""
        self.grads = list(map(self.put, grads))

    def values(self) -> list[Array]:
        """Return the parameters as arrays."""
        return [np.asarray(param, dtype=None if param.dtype != "bfloat16" else "float32") for param in self.params]


class FastoptJax(OnJax):
    """`fastopt.jax`'s optimizers, clipping in the step."""

    name = "fastopt.jax"

    @classmethod
    def obstacle(cls, task: Task) -> str | None:
        """Return why it cannot take part."""
        missing = super().obstacle(task)
        known = missing or task.method.optimizer in importlib.import_module("fastopt.jax").__all__
        return missing or (None if known else f"has no {task.method}")

    @classmethod
    def functions(cls, task: Task) -> tuple[Callable[[Any], Any], Callable[[Any, Any, Any], Any]]:
        """Return those of its class."""
        module = importlib.import_module("fastopt.jax")
        clipping = {"clip_norm": MAX_NORM} if task.clips else {}
        optimizer = getattr(module, task.method.optimizer)(**task.method.options, **clipping)
        return optimizer.init, optimizer.step


class Optax(OnJax):
    """optax's optimizers with torch's conventions."""

    name = "optax"
    precision = 1e-6  # clips by max_norm / norm, others by max_norm / (norm + 1e-6)
    modules = ("jax", "optax")

    @classmethod
    def transformation(cls, task: Task) -> Any:
        """Return optax's optimizer with torch's conventions, None if it has none."""
        optax = importlib.import_module("optax")
        o = task.method.all_options
        lr = o["lr"]
        if o.get("amsgrad"):
            return None
        if task.method.optimizer == "SGD":
            return optax.sgd(lr, o["momentum"] or None, o["nesterov"])
        if task.method.optimizer == "Adagrad":
            return optax.adagrad(lr, o["initial_accumulator_value"], o["eps"] ** 2)  # theirs is inside the root
        if task.method.optimizer == "RMSprop":
            averaging = {"centered": o["centered"], "momentum": o["momentum"] or None}
            return optax.rmsprop(lr, o["alpha"], o["eps"], eps_in_sqrt=False, **averaging)
        if task.method.optimizer == "Adam":
            return optax.adam(lr, *o["betas"], o["eps"])
        if task.method.optimizer == "AdamW":
            return optax.adamw(lr, *o["betas"], o["eps"], weight_decay=o["weight_decay"])
        return None

    @classmethod
    def obstacle(cls, task: Task) -> str | None:
        """Return why it cannot take part."""
        missing = super().obstacle(task)
        return missing or (None if cls.transformation(task) else f"has no {task.method}")

    @classmethod
    def functions(cls, task: Task) -> tuple[Callable[[Any], Any], Callable[[Any, Any, Any], Any]]:
        """Return those of its chain of transformations."""
        optax = importlib.import_module("optax")
        optimizer = cls.transformation(task)
        if task.clips:
            optimizer = optax.chain(optax.clip_by_global_norm(MAX_NORM), optimizer)

        def step(params: Any, grads: Any, state: Any) -> Any:
            updates, state = optimizer.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        return optimizer.init, step


@contextmanager
def few_cpus(count: int) -> Iterator[None]:
    """Let this process have so many CPUs in the block, where the system can say so."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(allowed)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)
