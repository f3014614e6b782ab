"""A model's folder in OpenVINO's format. Runs in the environment of `openvino`.

    python openvino_folder.py MODEL_FOLDER OUT_FOLDER as-is|int8|int4

`as-is` keeps the weights' dtype; int8 is optimum's default for it (asymmetric, a scale per row),
int4 symmetric in groups of 64 with everything in int4 that can be.
"""

import json
import sys
from pathlib import Path

from optimum.exporters.openvino import main_export
from optimum.intel import OVConfig, OVWeightQuantizationConfig

QUANTIZATION = {
    "as-is": None,
    "int8": {"bits": 8, "sym": False},
    "int4": {"bits": 4, "sym": True, "group_size": 64, "ratio": 1.0},
}


def main() -> int:
    source, target, kind = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    chosen = QUANTIZATION[kind]
    config = OVConfig(quantization_config=OVWeightQuantizationConfig(**chosen)) if chosen else None
    main_export(str(source), target, task="text-generation-with-past", ov_config=config)
    # GenAI refuses a model without an end of sequence. Runs ignore it.
    vocabulary = json.loads((source / "config.json").read_text())["vocab_size"]
    path = target / "generation_config.json"
    generation = {**json.loads(path.read_text()), "eos_token_id": vocabulary - 1}
    path.write_text(json.dumps(generation))
    return 0


if __name__ == "__main__":
    sys.exit(main())
