"""What the kernels need of each architecture's table."""

import pytest

from engine_triton.architecture import Architecture, known
from engine_triton.linear.product import BYTES, MANY, ROWS

FORMS = {"plain": 16, "rows": 8, "blocks": 8, "groups": 4}
GROUPS = 128  # the largest group of 4 bits, and the size of blocks of fp8


@pytest.mark.parametrize("name", known())
@pytest.mark.parametrize("kernel", ["linear", "experts"])
@pytest.mark.parametrize("size", BYTES)
def test_tiles_hold_whole_groups_and_do_not_cross_blocks(name: str, kernel: str, size: int) -> None:
    chip = Architecture.named(name)
    for form, bits in FORMS.items():
        for rows in (*ROWS, MANY):
            blocks = chip.launch(kernel, rows=rows, form=form, bits=bits, bytes=size).blocks
            if form == "groups":
                assert blocks["BLOCK_K"] % GROUPS == 0, (rows, blocks)
            if form == "blocks":
                assert GROUPS % blocks["BLOCK_K"] == 0, (rows, blocks)
