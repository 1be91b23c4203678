"""Learn to balance a pole by advantage actor-critic: many small steps, of which the optimizer is a good part.

    python examples/torch_policy.py

The environment is the cart and pole of Barto, Sutton and Anderson (1983), written out below; nothing but torch is used.
Clipping, the schedule and zeroing the gradients are options of the optimizer, so the loop has one line for all of them.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.distributions import Categorical

from fastopt.schedules import warmup_cosine
from fastopt.torch import Adam

UPDATES = 500
CARTS = 16
STEPS = 16  # of each cart between two updates
DISCOUNT = 0.98
LONGEST = 500  # steps after which a pole that is still up is let go


class CartPole:
    """Carts with a pole each, that are pushed to the left or to the right 50 times a second."""

    def __init__(self, carts: int, seed: int) -> None:
        self._random = torch.Generator().manual_seed(seed)
        self.state = self._upright(carts)
        self.ages = torch.zeros(carts)

    def _upright(self, carts: int) -> Tensor:
        return torch.rand(carts, 4, generator=self._random) * 0.1 - 0.05

    def step(self, right: Tensor) -> tuple[Tensor, Tensor]:
        """Push each cart; return which poles fell or were let go, and how long those were up. They begin anew."""
        x, speed, angle, spin = self.state.unbind(1)
        force = torch.where(right.bool(), 10.0, -10.0)
        pull = (force + 0.05 * spin**2 * angle.sin()) / 1.1
        turn = (9.8 * angle.sin() - angle.cos() * pull) / (0.5 * (4 / 3 - 0.1 * angle.cos() ** 2 / 1.1))
        push = pull - 0.05 * turn * angle.cos() / 1.1
        moved = torch.stack([x + 0.02 * speed, speed + 0.02 * push, angle + 0.02 * spin, spin + 0.02 * turn], dim=1)
        self.ages += 1
        ends = (moved[:, 0].abs() > 2.4) | (moved[:, 2].abs() > math.radians(12)) | (self.ages == LONGEST)
        lengths = self.ages[ends]
        self.state = torch.where(ends[:, None], self._upright(len(moved)), moved)
        self.ages[ends] = 0
        return ends, lengths


class Policy(nn.Module):
    """What to do in a state, and what the state is worth."""

    def __init__(self) -> None:
        super().__init__()
        self.action = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 2))
        self.value = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 1))

    def forward(self, states: Tensor) -> tuple[Categorical, Tensor]:
        """Return the distribution of actions and the value of states."""
        return Categorical(logits=self.action(states)), self.value(states).squeeze(-1)


@torch.no_grad()
def play(policy: Policy, carts: CartPole) -> tuple[Tensor, Tensor, Tensor, list[float]]:
    """Return states, actions, discounted rewards, and for how long the poles that ended were up."""
    states, actions, ends, lengths = [], [], [], []
    for _ in range(STEPS):
        states.append(carts.state)
        actions.append(policy(carts.state)[0].sample())
        ended, length = carts.step(actions[-1])
        ends.append(ended)
        lengths += length.tolist()
    returns, later = [], policy(carts.state)[1]
    for ended in reversed(ends):  # a step is worth 1 - DISCOUNT, so that a pole that stays up is worth 1
        later = 1 - DISCOUNT + DISCOUNT * later * ~ended
        returns.append(later)
    return torch.stack(states), torch.stack(actions), torch.stack(returns[::-1]), lengths


def train(optimizer_class: Callable[..., torch.optim.Optimizer] = Adam) -> Iterator[list[float]]:
    """Yield after each update for how many steps the poles were up that ended."""
    torch.manual_seed(0)
    policy, carts = Policy(), CartPole(CARTS, seed=0)
    # Clipping, the schedule and zeroing the gradients are in the step.
    optimizer = optimizer_class(
        policy.parameters(), lr=warmup_cosine(1e-2, warmup=20, total=UPDATES), clip_norm=0.5, zero_grad_in_step=True
    )
    for _ in range(UPDATES):
        states, actions, returns, lengths = play(policy, carts)
        distribution, values = policy(states)
        advantages = returns - values.detach()
        gain = distribution.log_prob(actions) * advantages / (advantages.std() + 1e-6)
        loss = (returns - values).square().mean() * 5 - gain.mean() - 0.01 * distribution.entropy().mean()
        loss.backward()
        optimizer.step()
        yield lengths


if __name__ == "__main__":
    recent: list[float] = []
    for update, lengths in enumerate(train(), start=1):
        recent = [*recent, *lengths][-32:]
        if update % 25 == 0:
            print(f"update {update:3d}  poles stay up for {sum(recent) / len(recent):5.1f} of {LONGEST} steps")
