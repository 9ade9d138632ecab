"""Recipes and single settings: what the papers say, and words that have no meaning."""

from __future__ import annotations

import math

import pytest
import torch

from unet_core.errors import JobError
from unet_core.training.optimiser import (
    MovingAverage,
    learning_rate,
    make_optimiser,
    optimiser_tensors,
    restore_optimiser,
    set_rate,
)
from unet_core.training.options import OptimiserOptions
from unet_core.training.recipes import RECIPES, make_options


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_is_valid(recipe: str) -> None:
    assert make_options(recipe).steps >= 1


def test_the_paper_is_the_paper() -> None:
    """Ronneberger et al. 2015, sections 2 and 3."""
    paper = make_options("paper")
    assert paper.network.arguments["base"] == 64
    assert paper.network.arguments["levels"] == 5
    assert (paper.optimiser.kind, paper.optimiser.momentum, paper.crops.per_step) == ("sgd", 0.99, 1)
    assert (paper.loss.cross_entropy, paper.loss.dice, paper.loss.reduction) == (1, 0, "sum")
    assert (paper.weights.w0, paper.weights.sigma, paper.weights.balance) == (10, 5, True)
    assert (paper.augmentation.deformation, paper.augmentation.grid, paper.augmentation.order) == (10, 3, 3)
    assert paper.crops.target == 388


def test_settings_change_single_values() -> None:
    options = make_options(
        "paper", ["optimiser.rate=1e-3", "network.arguments.base=32", "crops.target=[10, 20]", "patience=null"]
    )
    assert options.optimiser.rate == 1e-3
    assert options.network.arguments == {"base": 32, "levels": 5, "dropout": 0.5}
    assert options.crops.target == (10, 20)
    assert make_options("paper", ["network.name=fcn"]).network.arguments == {}
    assert RECIPES["paper"]["network"]["arguments"]["base"] == 64  # not changed by what is set


@pytest.mark.parametrize(
    ("recipe", "setting", "message"),
    [
        ("papper", "steps=1", "'papper' is not known (did you mean 'paper'?)"),
        ("paper", "stepps=1", "unknown key 'stepps' (did you mean 'steps'?)"),
        ("paper", "optimiser.rat=1", "unknown key 'rat' (did you mean 'rate'?)"),
        ("paper", "steps", "has no value"),
        ("paper", "steps=-1", "steps: Input should be greater"),
        ("paper", "steps=[", "no value"),
        ("paper", "optimiser.kind=sdg", "optimiser.kind"),
        ("paper", "steps.more=1", "steps: Input should be a valid integer"),
    ],
)
def test_words_without_meaning_are_named(recipe: str, setting: str, message: str) -> None:
    with pytest.raises(JobError) as error:
        make_options(recipe, [setting])
    assert message in str(error.value)


def test_learning_rates_are_functions_of_the_step() -> None:
    cosine = OptimiserOptions(rate=2.0, warmup_steps=4)
    assert [learning_rate(cosine, step, 20) for step in range(4)] == [0.5, 1.0, 1.5, 2.0]
    assert learning_rate(cosine, 12, 20) == pytest.approx(1.0)
    assert 0 < learning_rate(cosine, 19, 20) < 0.05
    steps = OptimiserOptions(rate=1.0, schedule="step", decay_factor=0.1, decay_steps=10)
    assert learning_rate(steps, 25, 100) == pytest.approx(0.01)
    assert learning_rate(OptimiserOptions(rate=3.0, schedule="constant"), 99, 100) == 3.0


@pytest.mark.parametrize("kind", ["adamw", "adam", "sgd", "rmsprop"])
def test_an_optimiser_goes_on_from_its_stored_state(kind: str) -> None:
    def steps(network: torch.nn.Module, optimiser: torch.optim.Optimizer, count: int) -> None:
        for number in range(count):
            optimiser.zero_grad()
            network(torch.full((2, 3), 1.0 + number)).square().sum().backward()
            optimiser.step()

    options = OptimiserOptions(kind=kind, rate=0.01)
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1))
    optimiser = make_optimiser(network, options)
    steps(network, optimiser, 3)
    other = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1))
    other.load_state_dict(network.state_dict())
    again = make_optimiser(other, options)
    restore_optimiser(again, {name: tensor.clone() for name, tensor in optimiser_tensors(optimiser).items()})
    steps(network, optimiser, 2)
    steps(other, again, 2)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), other.parameters(), strict=True))
    assert make_optimiser(network, options).param_groups[1]["weight_decay"] == 0


def test_the_moving_average_is_its_formula() -> None:
    network = torch.nn.BatchNorm1d(1)
    average = MovingAverage(network, 0.9)
    expected = 1.0
    for step, decay in ((0, 1 / 10), (1, 2 / 11), (100, 0.9)):  # short at first, so that what it began with is soon forgotten
        with torch.no_grad():
            network.weight.fill_(2.0 + step)
        network.num_batches_tracked += 1
        average.update(network, step)
        expected = decay * expected + (1 - decay) * (2.0 + step)
    assert math.isclose(float(average.state["weight"]), expected, rel_tol=1e-6)
    assert int(average.state["num_batches_tracked"]) == 3


def test_biases_may_learn_faster() -> None:
    """As in the solvers of FCN and V-Net, where they take twice the rate; without momentum the first step is the rate times the gradient."""
    network = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.PReLU())
    options = OptimiserOptions(kind="sgd", momentum=0.0, weight_decay=0.0, bias_rate=2.0)
    optimiser = make_optimiser(network, options)
    before = {name: each.detach().clone() for name, each in network.named_parameters()}
    network(torch.tensor([[1.0, -2.0, 3.0]])).square().sum().backward()
    set_rate(optimiser, 0.01)
    optimiser.step()
    for name, each in network.named_parameters():
        factor = 0.02 if name.endswith("bias") else 0.01
        torch.testing.assert_close(each.detach(), before[name] - factor * each.grad)
    assert make_options("fcn").optimiser.bias_rate == make_options("vnet").optimiser.bias_rate == 2
