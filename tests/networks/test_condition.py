"""The condition embedding: linear in the tags, aware of the slice's position and of not knowing it."""

from __future__ import annotations

import torch

from app_cdm.networks.condition import ABSENT_INDEX, NULL_INDEX, PRESENT_INDEX, ConditionEmbedding, class_weights_from_states


def embedding(num_classes: int = 2) -> ConditionEmbedding:
    torch.manual_seed(0)
    module = ConditionEmbedding(num_classes, 24)
    torch.nn.init.normal_(module.unknown_position)
    return module.eval().requires_grad_(False)


def one_hot(*kinds: int) -> torch.Tensor:
    return torch.eye(3)[list(kinds)][None]


def test_blended_weights_give_the_blended_embedding() -> None:
    module, position = embedding(), torch.tensor([0.3])
    present, absent = (module(one_hot(kind, NULL_INDEX), position) for kind in (PRESENT_INDEX, ABSENT_INDEX))
    for tau in (0.0, 0.25, 0.95, 1.0):
        weights = tau * one_hot(PRESENT_INDEX, NULL_INDEX) + (1 - tau) * one_hot(ABSENT_INDEX, NULL_INDEX)
        torch.testing.assert_close(module(weights, position), tau * present + (1 - tau) * absent)


def test_embedding_is_the_sum_of_one_vector_a_class_and_one_of_the_position() -> None:
    module, position = embedding(3), torch.tensor([0.7])
    weights = one_hot(PRESENT_INDEX, NULL_INDEX, ABSENT_INDEX)
    where = module(torch.zeros(1, 3, 3), position)
    vectors = module.class_vectors
    torch.testing.assert_close(module(weights, position), where + vectors[0, 1] + vectors[1, 2] + vectors[2, 0])


def test_unknown_position_has_a_vector_of_its_own() -> None:
    module, weights = embedding(), one_hot(NULL_INDEX, NULL_INDEX).repeat(3, 1, 1)
    positions = torch.tensor([0.0, torch.nan, 1.0])
    result = module(weights, positions)
    assert result.isfinite().all()
    torch.testing.assert_close(result[1], module.class_vectors[:, NULL_INDEX].sum(0) + module.unknown_position)
    assert (result[0] - result[1]).abs().max() > 0.01


def test_positions_are_told_apart_over_the_whole_range() -> None:
    module = embedding()
    weights = one_hot(NULL_INDEX, NULL_INDEX).repeat(101, 1, 1)
    result = module(weights, torch.linspace(0, 1, 101))
    distance = torch.cdist(result, result) + torch.eye(101)
    assert distance.min() > 1e-3
    assert distance[0, 100] > 0.05  # the ends are not the same place


def test_gradient_reaches_every_parameter_where_some_positions_are_unknown() -> None:
    module = embedding().requires_grad_(True)
    weights = torch.cat([one_hot(0, 1), one_hot(1, 2), one_hot(2, 0)])
    module(weights, torch.tensor([0.1, torch.nan, 0.9])).square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_tag_states_become_one_hot_weights() -> None:
    states = torch.tensor([[1, 0, -1], [-1, 1, 0]], dtype=torch.int8)
    weights = class_weights_from_states(states)
    assert weights.argmax(dim=2).tolist() == [[PRESENT_INDEX, ABSENT_INDEX, NULL_INDEX], [NULL_INDEX, PRESENT_INDEX, ABSENT_INDEX]]
    assert torch.equal(weights.sum(dim=2), torch.ones(2, 3))
    assert weights.dtype == torch.float32
