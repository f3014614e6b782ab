"""A model's folder in OpenVINO's format. Runs in the environment of `openvino`.

    python openvino_folder.py MODEL_FOLDER OUT_FOLDER as-is|int8|int4

`as-is` keeps the weights' dtype; int8 is asymmetric with a scale per row, as optimum's own would
be, int4 symmetric in groups of 64 with everything in int4 that can be. optimum's export by itself
makes int8 of large models where nothing is asked for, and quantizes nothing where something is.
"""

import json
import sys
from pathlib import Path

import nncf
import openvino
from optimum.exporters.openvino import main_export
from optimum.intel import OVConfig

BITS = {"as-is": 16, "int8": 8, "int4": 4}
MODES = {
    "int8": {"mode": nncf.CompressWeightsMode.INT8_ASYM},
    "int4": {"mode": nncf.CompressWeightsMode.INT4_SYM, "group_size": 64, "ratio": 1.0},
}


def main() -> int:
    source, target, kind = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    main_export(str(source), target, task="text-generation-with-past", ov_config=OVConfig())
    if kind in MODES:
        compress(target / "openvino_model.xml", **MODES[kind])
    weights = sum(file.stat().st_size for file in source.glob("*.safetensors"))  # of 16 bits
    size = (target / "openvino_model.bin").stat().st_size
    if not 0.8 < size / (weights * BITS[kind] / 16) < 1.3:
        raise SystemExit(f"{size} bytes are not {kind} of {weights} bytes in 16 bits")
    # GenAI refuses a model without an end of sequence. Runs ignore it.
    vocabulary = json.loads((source / "config.json").read_text())["vocab_size"]
    path = target / "generation_config.json"
    generation = {**json.loads(path.read_text()), "eos_token_id": vocabulary - 1}
    path.write_text(json.dumps(generation))
    return 0


def compress(path: Path, **how: object) -> None:
    """In place."""
    other = path.with_name("compressed.xml")
    model = nncf.compress_weights(openvino.Core().read_model(path), **how)
    openvino.save_model(model, other, compress_to_fp16=False)
    del model
    for suffix in (".xml", ".bin"):
        other.with_suffix(suffix).replace(path.with_suffix(suffix))


if __name__ == "__main__":
    sys.exit(main())
