"""The generator against its published vectors, and the numbers made of it."""

import numpy as np
import pytest
import torch

from engine.sampling.rng import philox, uniforms

from .rig import chi_square

# kat_vectors of Random123, `philox4x32 10`: counter, key, answer.
KNOWN_ANSWERS = """
00000000 00000000 00000000 00000000 00000000 00000000 6627e8d5 e169c58d bc57ac4c 9b00dbd8
ffffffff ffffffff ffffffff ffffffff ffffffff ffffffff 408f276d 41c83b0e a20bc7c6 6d5451fd
243f6a88 85a308d3 13198a2e 03707344 a4093822 299f31d0 d16cfe09 94fdcceb 5001e420 24126ea1
"""


def test_philox_gives_the_published_answers():
    words = [[int(word, 16) for word in line.split()] for line in KNOWN_ANSWERS.split("\n")[1:-1]]
    table = np.array(words, dtype=np.uint64)
    assert np.array_equal(philox(table[:, :4], table[:, 4:6]), table[:, 6:])


def numbers(seeds, positions):
    return uniforms(np.array(seeds, dtype=np.uint64), np.array(positions, dtype=np.int64))


def test_a_number_is_the_top_bits_of_its_word():
    seed, position = 0x299F31D0A4093822, 5
    word = philox(
        np.array([[position, 0, 0, 0]], dtype=np.uint64),
        np.array([[seed & 0xFFFFFFFF, seed >> 32]], dtype=np.uint64),
    )[0]
    assert numbers([seed], [position])[0].tolist() == [int(w) // 256 / 2**24 for w in word[:2]]


@pytest.mark.parametrize("varying", ["position", "seed", "upper half of the seed"])
def test_numbers_are_uniform_and_the_two_of_a_position_independent(varying):
    count = 40_000
    line, still = np.arange(count), np.zeros(count, dtype=np.int64)
    seeds = {"position": still, "seed": line, "upper half of the seed": line << 32}[varying]
    found = torch.from_numpy(numbers(seeds, line if varying == "position" else still))
    assert found.dtype == torch.float32
    assert torch.equal(found, found.clamp(0, 1 - 2**-24))
    cells = (found * 20).long()
    pairs = torch.bincount(cells[:, 0] * 20 + cells[:, 1], minlength=400)
    assert abs(chi_square(pairs, torch.full((400,), 1 / 400))) < 4
    following = torch.bincount(cells[:-1, 0] * 20 + cells[1:, 0], minlength=400)
    assert abs(chi_square(following, torch.full((400,), 1 / 400))) < 4


def test_every_bit_of_seed_and_position_counts():
    seeds = [0, *(1 << bit for bit in range(64))]
    of_seeds = {tuple(pair) for pair in numbers(seeds, [7] * 65).tolist()}
    of_positions = {tuple(p) for p in numbers([9] * 32, [1 << bit for bit in range(32)]).tolist()}
    assert (len(of_seeds), len(of_positions)) == (65, 32)
