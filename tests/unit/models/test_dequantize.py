"""Checkpoints in fp8 with scales: what is read is the product, whatever the scales are one for."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from engine.errors import ModelError
from engine.models.checkpoint import Checkpoint, Piece
from engine.models.scaling import Scaling

from .families import SIZES, expected_logits, load, make, save
from .oracle import Cache, run

TOKENS = [5, 17, 90, 3, 44]
LARGEST = 448.0  # of float8_e4m3fn
BLOCK = (16, 24)  # neither divides what it is laid over

FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic"}
COMPRESSED = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True},
            "input_activations": {"num_bits": 8, "type": "float", "dynamic": True},
        }
    },
}
#: What config.json says, the name of the scales, and the blocks: None is a row each, () is one.
FORMS = {
    "tensor": (FP8 | {"activation_scheme": "static"}, "weight_scale", ()),
    "row": (COMPRESSED, "weight_scale", None),
    "block": (FP8 | {"weight_block_size": list(BLOCK)}, "weight_scale_inv", BLOCK),
}


def rounded(weight, block):
    """(fp8, scales, the product in float64): one scale a block, row, or for all."""
    height, width = weight.shape
    rows, columns = block or ((1, width) if block is None else (height, width))
    levels = torch.empty_like(weight, dtype=torch.float8_e4m3fn)
    scales = torch.empty(-(-height // rows), -(-width // columns))
    product = torch.empty_like(weight, dtype=torch.float64)
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            at = (slice(i * rows, (i + 1) * rows), slice(j * columns, (j + 1) * columns))
            scales[i, j] = weight[at].abs().max() / LARGEST
            levels[at] = (weight[at] / scales[i, j]).to(levels.dtype)
            product[at] = levels[at].double() * scales[i, j].double()
    return levels, scales[0, 0] if block == () else scales, product


def quantize(folder, reference, form):
    """The model's linear layers in fp8; `reference` gets the weights that these stand for."""
    described, suffix, block = FORMS[form]
    path, config = folder / "model.safetensors", folder / "config.json"
    stored, exact = {}, {}
    for name, weight in load_file(path).items():
        stored[name] = exact[name] = weight
        if "_proj." in name:
            stored[name], scales, product = rounded(weight, block)
            stored[name.replace("weight", suffix)] = scales
            exact[name] = product.float()
    save_file(stored, path)
    reference.load_state_dict(exact)
    config.write_text(
        json.dumps(json.loads(config.read_text()) | {"quantization_config": described})
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", ["LlamaForCausalLM", "Phi3ForCausalLM"])
def test_a_model_in_fp8_gives_the_logits_of_what_its_weights_stand_for(tmp_path, family, form):
    """Phi-3's projections are fused: their rows are read in parts."""
    reference = make(family, **SIZES)
    save(reference, tmp_path)
    quantize(tmp_path, reference, form)
    got = run(load(tmp_path), [(Cache(), TOKENS)])[0]
    torch.testing.assert_close(got, expected_logits(reference, TOKENS), atol=1e-4, rtol=0)


@pytest.fixture(scope="module")
def matrices(tmp_path_factory):
    """By form: a checkpoint of one matrix [50, 70], and what it stands for."""
    weight = torch.randn(50, 70, generator=torch.Generator().manual_seed(0))
    made = {}
    for form, (described, suffix, block) in FORMS.items():
        folder = tmp_path_factory.mktemp(form)
        levels, scales, product = rounded(weight, block)
        save_file({"a.weight": levels, f"a.{suffix}": scales}, folder / "model.safetensors")
        made[form] = Checkpoint(folder, Scaling.of(described)), product
    return made


def part_of(size):
    bounds = st.tuples(st.integers(0, size - 1), st.integers(1, size))
    return st.none() | bounds.map(lambda pair: range(min(pair), max(*pair, min(pair) + 1)))


@settings(max_examples=25, deadline=None)
@given(rows=part_of(50), columns=part_of(70), form=st.sampled_from(sorted(FORMS)))
def test_a_rank_s_part_has_its_own_scales(matrices, rows, columns, form):
    checkpoint, product = matrices[form]
    piece = Piece("a.weight", (50, 70), rows, columns)
    found = checkpoint.read([piece, piece], torch.float32, "cpu")
    right = piece.of(product).float()
    torch.testing.assert_close(found, torch.cat((right, right)), rtol=1e-6, atol=0)


def one_matrix(folder, scaling, **tensors):
    """Read a matrix [4, 6] in fp8 beside such tensors."""
    weight = torch.ones(4, 6).to(torch.float8_e4m3fn)
    save_file({"a.weight": weight, **tensors}, folder / "model.safetensors")
    return Checkpoint(folder, scaling).read([Piece("a.weight", (4, 6))], torch.float32, "cpu")


def test_fp8_without_scales_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"the files a\.weight_scale or a\.weight_scale_inv"):
        one_matrix(tmp_path, Scaling())


def test_fp8_that_the_configuration_does_not_mention_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"how it is scaled is not known: config\.json needs"):
        one_matrix(tmp_path, None, **{"a.weight_scale": torch.ones(1)})


@pytest.mark.parametrize(
    ("block", "why"),
    [(None, r"4 rows have scales \(2, 3\)"), ((2, 4), r"\(2, 2\) blocks have scales \(2, 3\)")],
)
def test_scales_of_another_shape_are_refused(tmp_path, block, why):
    with pytest.raises(ModelError, match=f"'a.weight_scale' .* does not fit its weight: {why}"):
        one_matrix(tmp_path, Scaling(block), **{"a.weight_scale": torch.ones(2, 3)})


@pytest.mark.parametrize(
    ("described", "why"),
    [
        ({"quant_method": "awq", "bits": 4}, "of method 'awq' that cannot be used; fp8"),
        ({}, "of method None"),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"a": {"weights": {"num_bits": 4, "type": "int"}}},
            },
            "of method 'compressed-tensors' that cannot",
        ),
        ({"quant_method": "compressed-tensors", "config_groups": None}, "cannot be used"),
        ({"quant_method": "fp8", "weight_block_size": [128]}, r"blocks of \[128\]; two sizes"),
        ({"quant_method": "fp8", "weight_block_size": [0, 8]}, r"blocks of \[0, 8\]; two sizes"),
    ],
)
def test_other_descriptions_are_refused_with_what_can_be_used(described, why):
    with pytest.raises(ModelError, match=why):
        Scaling.of(described)


def test_a_model_of_transformers_code_reads_none(tmp_path):
    save(make("GPT2LMHeadModel", n_embd=32, n_layer=1, n_head=2, vocab_size=96), tmp_path)
    config = tmp_path / "config.json"
    described = json.loads(config.read_text()) | {"quantization_config": FP8}
    config.write_text(json.dumps(described))
    with pytest.raises(ModelError, match="runs through transformers' code, which reads no quant"):
        load(tmp_path)
