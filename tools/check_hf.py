#!/usr/bin/env python3
"""Checks that `transformers` computes the same logits as Templar from an exported model folder.

    pip install torch transformers
    python3 tools/check_hf.py FOLDER

FOLDER holds an exported model and `logits.json`: {"tokens": [[…]], "logits": [[[…]]]}, sequences of tokens and
Templar's logits for them. `cargo run --release -p templar-model --example export_hf -- FOLDER` writes such a folder.
Exits with 1 if a logit differs by more than 1e-4.
"""

import json
import sys
from pathlib import Path

TOLERANCE = 1e-4


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    folder = Path(sys.argv[1])
    if not (folder / "logits.json").is_file():
        print(f"{folder}/logits.json is missing; export the model together with its logits", file=sys.stderr)
        return 2

    import torch
    from transformers import AutoModelForCausalLM

    # A Llama or, where queries and keys have norms, a Qwen 3.
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    # With tied embeddings there is no separate output projection to load.
    missing = set(report["missing_keys"]) - ({"lm_head.weight"} if model.config.tie_word_embeddings else set())
    if missing or report["unexpected_keys"] or report["mismatched_keys"]:
        print(f"the weights do not fit the configuration: {report}")
        return 1
    if model.dtype != torch.float32:
        print(f"the model was loaded as {model.dtype}, but had been exported as float32")
        return 1

    ours = json.loads((folder / "logits.json").read_text())
    with torch.no_grad():
        theirs = model.eval()(torch.tensor(ours["tokens"])).logits
    expected = torch.tensor(ours["logits"], dtype=torch.float32)
    if theirs.shape != expected.shape:
        print(f"transformers gives logits of shape {tuple(theirs.shape)}, Templar {tuple(expected.shape)}")
        return 1
    difference = (theirs - expected).abs().max().item()
    print(f"{type(model).__name__}: {theirs.numel()} logits up to {theirs.abs().max().item():.3g}: largest difference {difference:.3g}")
    # Written so that a NaN fails too.
    return 0 if difference <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
