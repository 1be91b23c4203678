"""Programs that others wrote train the same with fastopt's optimizers as with torch's.

`tools/ecosystem` runs these in an environment of their own; docs/recipes.md says what each program needs.
"""

import importlib.util
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import fastopt.torch  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

Train = Callable[[ModuleType], list[float]]
"""Trains with the optimizers of a module, `torch.optim` or `fastopt.torch`, and returns a number now and then."""

PROGRAMS: list[Any] = []


def program(library: str, rtol: float = 1e-4) -> Callable[[Train], Train]:
    """Have this compared, if the library is there."""

    def add(train: Train) -> Train:
        PROGRAMS.append(pytest.param(library, train, rtol, id=train.__name__))
        return train

    return add


def network() -> Any:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1))


def batches(count: int = 30) -> list[tuple[Any, Any]]:
    """Return points, and the sum of the sines of their coordinates."""
    x = torch.rand(count, 32, 8, generator=torch.Generator().manual_seed(0)) * 4 - 2
    return list(zip(x, x.sin().sum(dim=-1, keepdim=True), strict=True))


def loss_of(model: Any, batch: tuple[Any, Any]) -> Any:
    return torch.nn.functional.mse_loss(model(batch[0]), batch[1])


@program("stable_baselines3")
def ppo_of_stable_baselines3(optim: ModuleType) -> list[float]:
    from stable_baselines3 import PPO

    policy = {"optimizer_class": optim.Adam, "optimizer_kwargs": {"eps": 1e-5}}
    model = PPO("MlpPolicy", "CartPole-v1", n_steps=256, policy_kwargs=policy, seed=0, device="cpu")
    states = torch.linspace(-1, 1, 40).reshape(10, 4)
    worth = []
    for _ in range(4):
        model.learn(256, reset_num_timesteps=False)
        worth += model.policy.predict_values(states).flatten().tolist()
    return worth


@pytest.mark.parametrize(("optim", "eps"), [(torch.optim, 1e-5), (fastopt.torch, 1e-8)])
def test_stable_baselines3_has_an_epsilon_for_torchs_adam_alone(optim: ModuleType, eps: float) -> None:
    stable_baselines3: Any = pytest.importorskip("stable_baselines3")
    model = stable_baselines3.PPO("MlpPolicy", "CartPole-v1", policy_kwargs={"optimizer_class": optim.Adam})
    assert model.policy.optimizer.param_groups[0]["eps"] == eps


def lightning_module(optim: ModuleType) -> Any:
    import lightning

    class Sines(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = network()
            self.losses: list[float] = []

        def training_step(self, batch: tuple[Any, Any], index: int) -> Any:
            loss = loss_of(self.network, batch)
            self.losses.append(loss.item())
            return loss

        def train_dataloader(self) -> Any:
            return torch.utils.data.DataLoader(batches(), batch_size=None)

        def configure_optimizers(self) -> Any:
            return optim.AdamW(self.parameters(), lr=1e-2)

    return Sines


QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


@program("lightning", rtol=0.03)
def lightning_in_mixed_precision_with_clipping(optim: ModuleType) -> list[float]:
    import lightning

    module = lightning_module(optim)()
    lightning.Trainer(max_epochs=2, precision="bf16-mixed", gradient_clip_val=0.5, **QUIET).fit(module)
    losses: list[float] = module.losses
    return losses


@program("jsonargparse")
def lightning_from_the_command_line(optim: ModuleType) -> list[float]:
    from lightning.pytorch.cli import LightningCLI

    module = lightning_module(optim)
    del module.configure_optimizers  # which the command line brings
    adamw = {"class_path": f"{optim.__name__}.AdamW", "init_args": {"lr": 0.01}}
    trainer = {"max_epochs": 1, **QUIET}
    cli = LightningCLI(module, seed_everything_default=0, save_config_callback=None, args={
        "subcommand": "fit", "fit": {"optimizer": adamw, "trainer": trainer},
    })  # fmt: skip
    losses: list[float] = cli.model.losses
    return losses


@program("transformers")
def trainer_of_transformers(optim: ModuleType) -> list[float]:
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

    torch.manual_seed(0)
    tokens = torch.randint(0, 5, (64, 16))
    model = GPT2LMHeadModel(GPT2Config(vocab_size=5, n_positions=16, n_embd=32, n_layer=1, n_head=2))
    arguments = TrainingArguments(
        max_steps=20, learning_rate=1e-3, lr_scheduler_type="cosine", warmup_steps=5, max_grad_norm=0.5,
        use_cpu=True, logging_steps=1, save_strategy="no", report_to=[], disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=[{"input_ids": row, "labels": row} for row in tokens],
        optimizer_cls_and_kwargs=(optim.AdamW, {"lr": 1e-3, "weight_decay": 0.1}),
    )
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@program("accelerate", rtol=0.03)
def accelerate_in_mixed_precision(optim: ModuleType) -> list[float]:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()  # the one of a process, which transformers makes too
    accelerator = Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=2)
    model = network()
    model, optimizer = accelerator.prepare(model, optim.AdamW(model.parameters(), lr=1e-2))
    losses = []
    for batch in batches():
        with accelerator.accumulate(model):
            loss = loss_of(model, batch)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@program("skorch")
def skorch_with_clipping(optim: ModuleType) -> list[float]:
    from skorch import NeuralNetRegressor
    from skorch.callbacks import GradientNormClipping

    x, y = (torch.cat(parts) for parts in zip(*batches(), strict=True))
    network_ = NeuralNetRegressor(
        network(), optimizer=optim.AdamW, optimizer__weight_decay=0.1, lr=1e-2, max_epochs=3, train_split=None,
        callbacks=[GradientNormClipping(0.5)], verbose=0,
    )  # fmt: skip
    network_.fit(x, y)
    losses: list[float] = network_.history[:, "train_loss"]
    return losses


def without_models_of_timm() -> None:
    """Let timm's optimizers be imported where its models cannot: they use them for rates by layer."""
    timm, models = ModuleType("timm"), ModuleType("timm.models")
    timm.__path__ = importlib.util.find_spec("timm").submodule_search_locations
    models.group_parameters = None
    sys.modules.update({"timm": timm, "timm.models": models})


@program("timm")
def registry_of_timm(optim: ModuleType) -> list[float]:
    if importlib.util.find_spec("torchvision") is None and "timm" not in sys.modules:
        without_models_of_timm()
    from timm.optim import OptimInfo, create_optimizer_v2
    from timm.optim._optim_factory import default_registry

    default_registry.register(OptimInfo("measured", optim.AdamW, has_betas=True, has_eps=True))
    model = network()
    optimizer = create_optimizer_v2(model, opt="measured", lr=1e-2, weight_decay=0.1)
    assert isinstance(optimizer, optim.AdamW)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.1]
    return plain_loop(model, optimizer)


@program("torch_geometric")
def graph_of_torch_geometric(optim: ModuleType) -> list[float]:
    from torch_geometric.nn import GCN

    torch.manual_seed(0)
    features, edges, kinds = torch.randn(50, 8), torch.randint(0, 50, (2, 200)), torch.randint(0, 3, (50,))
    model = GCN(8, 16, num_layers=2, out_channels=3)
    optimizer = optim.Adam(model.parameters(), lr=1e-2, weight_decay=5e-4)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(features, edges), kinds)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@program("deepspeed")
def client_optimizer_of_deepspeed(optim: ModuleType) -> list[float]:
    import deepspeed

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    model = network()
    config = {
        "train_batch_size": 32,
        "gradient_clipping": 0.5,
        "zero_optimization": {"stage": 1},
        "zero_allow_untested_optimizer": True,
    }
    optimizer = optim.AdamW(model.parameters(), lr=1e-2)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config, dist_init_required=True)
    losses = []
    for batch in batches():
        loss = loss_of(engine, batch)
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    return losses


@program("ray")
def workers_of_ray(optim: ModuleType) -> list[float]:
    """Two workers train, and their models are averaged after every round."""
    import ray

    class Worker:
        def __init__(self, name: str) -> None:
            self.model = network()
            self.optimizer = importlib.import_module(name).AdamW(self.model.parameters(), lr=1e-2)

        def train(self, state: Any, share: int) -> Any:
            self.model.load_state_dict(state)
            losses = plain_loop(self.model, self.optimizer, batches()[share::2])
            return losses, self.model.state_dict()

    os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # it would leave a token in the home directory
    environment = {"env_vars": {"PYTHONPATH": str(Path(__file__).parent)}}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env=environment)
    workers = [ray.remote(Worker).remote(optim.__name__) for _ in range(2)]
    state, losses = network().state_dict(), []
    for _ in range(3):
        results = ray.get([worker.train.remote(state, share) for share, worker in enumerate(workers)])
        losses += [loss for result, _ in results for loss in result]
        state = {name: sum(other[name] for _, other in results) / 2 for name in state}
    ray.shutdown()
    return losses


@program("flwr")
def clients_of_flower(optim: ModuleType) -> list[float]:
    """Clients of Flower, in this process, and its strategy that averages them."""
    from flwr.app import ArrayRecord

    clients = [network() for _ in range(2)]
    optimizers = [optim.AdamW(model.parameters(), lr=1e-2) for model in clients]
    shared, losses = ArrayRecord(clients[0].state_dict()), []
    for _ in range(3):
        for share, (model, optimizer) in enumerate(zip(clients, optimizers, strict=True)):
            model.load_state_dict(shared.to_torch_state_dict())
            losses += plain_loop(model, optimizer, batches()[share::2])
        states = [ArrayRecord(model.state_dict()).to_torch_state_dict() for model in clients]
        shared = ArrayRecord({name: (states[0][name] + states[1][name]) / 2 for name in states[0]})
    return losses


@program("torch")
def compiled_model(optim: ModuleType) -> list[float]:
    model = network()
    optimizer = optim.AdamW(model.parameters(), lr=1e-2)
    return plain_loop(torch.compile(model), optimizer)


def plain_loop(model: Any, optimizer: Any, data: list[tuple[Any, Any]] | None = None) -> list[float]:
    losses = []
    for batch in data or batches():
        optimizer.zero_grad()
        loss = loss_of(model, batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(("library", "train", "rtol"), PROGRAMS)
def test_the_curve_is_that_of_torchs_optimizer(
    library: str, train: Train, rtol: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    monkeypatch.chdir(tmp_path)
    curves = []
    for optim in (torch.optim, fastopt.torch):
        torch.manual_seed(0)
        curves.append(train(optim))
    assert len(curves[0]) >= 3
    assert curves[0][-1] != curves[0][0]
    np.testing.assert_allclose(curves[1], curves[0], rtol=rtol, atol=rtol / 10)
