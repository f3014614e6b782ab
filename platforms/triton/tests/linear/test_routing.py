"""Tokens sorted by expert, whoever chose whom."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_triton.architecture import Architecture
from engine_triton.linear.routing import most_tiles, route

CHOICES = st.tuples(st.integers(1, 12), st.integers(1, 3), st.integers(3, 20), st.integers(0, 999))


@settings(max_examples=15, deadline=None)
@given(choices=CHOICES, tile=st.sampled_from([1, 2, 16]))
def test_every_assignment_is_in_one_tile_of_its_expert(
    choices: tuple[int, int, int, int], tile: int
) -> None:
    tokens, active, experts, seed = choices
    random = torch.Generator().manual_seed(seed)
    # Skewed, so that some experts have many tokens and some none.
    liked = torch.rand(experts, generator=random) * 3
    scores = torch.rand(tokens, experts, generator=random) + liked
    ids = scores.topk(active).indices
    architecture = Architecture.named("interpreter")
    routes = route(ids, experts, tile, architecture.launch("route", experts=experts))
    expected = ids.flatten().sort(stable=True).indices
    assert routes.order_N.tolist() == expected.tolist()
    covered = []
    for expert, first, end in routes.tiles.tolist():
        if expert < 0:
            continue
        for place in range(first, min(first + tile, end)):
            assert ids.flatten()[routes.order_N[place]] == expert
            covered.append(place)
    assert covered == list(range(tokens * active))


@pytest.mark.parametrize("tile", [1, 16, 64])
def test_there_is_room_for_the_most_uneven_choice(tile: int) -> None:
    """One token for each expert but one, and all others for that one."""
    for experts in (1, 4, 60):
        for assignments in (1, 3, 64, 1000):
            chosen = min(experts, assignments)
            uneven = [1] * (chosen - 1) + [assignments - chosen + 1]
            needed = sum(-(-count // tile) for count in uneven)
            assert needed <= most_tiles(assignments, experts, tile) <= assignments


def test_the_picture_in_the_module_is_what_it_says(architecture: Architecture) -> None:
    ids = torch.tensor([[2, 0], [0, 1], [0, 2]])
    routes = route(ids, 3, 2, architecture.launch("route", experts=3))
    assert routes.order_N.tolist() == [1, 2, 4, 3, 0, 5]
    used = [tuple(tile) for tile in routes.tiles.tolist() if tile[0] >= 0]
    assert used == [(0, 0, 3), (0, 2, 3), (1, 3, 4), (2, 4, 6)]
