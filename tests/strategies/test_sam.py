"""Sharpness-aware training steps against the paper's formula, alone and in a run."""

from pathlib import Path

import torch

from fedgraft import RunConfig, simulate
from fedgraft.config.registry import STRATEGIES
from fedgraft.strategies.components import Training


def test_the_gradient_is_taken_where_the_loss_is_highest_nearby() -> None:
    sam = STRATEGIES.load("sam").make({"rho": 0.3})
    assert isinstance(sam, Training)
    first, second = torch.nn.Parameter(torch.tensor([1.0, -2.0])), torch.nn.Parameter(torch.tensor(0.5))

    def backward() -> list[torch.Tensor]:
        loss = (first**4).sum() + torch.exp(second) * first[0]
        loss.backward()
        return [loss]

    sam.gradients(backward, [[first, second]])
    w = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64, requires_grad=True)

    def loss(at: torch.Tensor) -> torch.Tensor:
        return (at[:2] ** 4).sum() + torch.exp(at[2]) * at[0]

    slope = torch.autograd.grad(loss(w), w)[0]
    highest = (w + 0.3 * slope / slope.norm()).detach().requires_grad_()
    expected = torch.autograd.grad(loss(highest), highest)[0].float()
    assert torch.allclose(torch.cat([first.grad, second.grad[None]]), expected, rtol=1e-5)  # type: ignore[arg-type, index]


def test_a_loss_that_is_flat_gives_no_gradient_and_no_error() -> None:
    sam = STRATEGIES.load("sam").make({})
    assert isinstance(sam, Training)
    weight = torch.nn.Parameter(torch.zeros(3))

    def backward() -> list[torch.Tensor]:
        loss = (weight**2).sum()
        loss.backward()
        return [loss]

    sam.gradients(backward, [[weight]])
    assert weight.grad is not None
    assert not weight.grad.any()
    assert not weight.isnan().any()


def test_a_run_trains_otherwise_with_it_and_before_any_rule(tmp_path: Path) -> None:
    def metrics(name: str, strategy: str) -> dict[str, float]:
        config = RunConfig(
            method="promptfl",
            data="digits",
            sites=3,
            rounds=2,
            shots=4,
            lr=0.05,
            strategy=strategy,
            method_options={"n_ctx": 2},
        )
        found: dict[str, float] = simulate(config, tmp_path / name)["metrics"]
        return found

    assert metrics("plain", "") != metrics("sam", "sam(rho=0.5)+median")
