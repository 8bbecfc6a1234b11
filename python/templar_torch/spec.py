"""What a run specifies about its model and inner optimiser. Fields are those of ``run.toml``, with the same meaning."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

Spec = TypeVar("Spec", bound="ModelSpec | InnerSpec")

OPTIMISERS = ("adamw", "muon")


@dataclass(frozen=True)
class ModelSpec:
    """Shape of a Llama-family decoder."""

    vocab_size: int
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    ffn_size: int
    seq_len: int
    rope_theta: float
    norm_eps: float
    tied_embeddings: bool
    qk_norm: bool = False

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.heads

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of all parameters in canonical order: Hugging Face's names, ``[out, in]``."""
        d, ffn, kv = self.hidden_size, self.ffn_size, self.kv_heads * self.head_dim
        layer = {
            "input_layernorm": (d,),
            "self_attn.q_proj": (d, d),
            "self_attn.k_proj": (kv, d),
            "self_attn.v_proj": (kv, d),
            "self_attn.o_proj": (d, d),
            **({f"self_attn.{part}_norm": (self.head_dim,) for part in "qk"} if self.qk_norm else {}),
            "post_attention_layernorm": (d,),
            "mlp.gate_proj": (ffn, d),
            "mlp.up_proj": (ffn, d),
            "mlp.down_proj": (d, ffn),
        }
        tensors: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab_size, d)}
        for nth in range(self.layers):
            tensors |= {f"model.layers.{nth}.{part}.weight": shape for part, shape in layer.items()}
        tensors["model.norm.weight"] = (d,)
        if not self.tied_embeddings:
            tensors["lm_head.weight"] = (self.vocab_size, d)
        return tensors

    @property
    def parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.tensors().values())


@dataclass(frozen=True)
class InnerSpec:
    """The inner optimiser, with linear warm-up and cosine decay."""

    steps: int
    batch_sequences: int
    micro_batch_sequences: int
    lr: float
    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float
    clip_norm: float
    warmup_steps: int
    decay_steps: int
    final_lr_fraction: float
    optimiser: str = "adamw"
    muon_lr: float = 0.02
    muon_momentum: float = 0.95
    muon_weight_decay: float = 0.01
    reset_every_windows: int = 0
    reset_warmup_steps: int = 0
    anneal_from_window: int = 0
    anneal_windows: int = 0
    anneal_steps: int = 0
    z_loss: float = 0.0

    def anneal_share(self, step: int) -> float:
        """How much of the learning rate is left at a global step: 1 before the run's anneal, 0 after it."""
        first = self.anneal_from_window * self.steps
        if self.anneal_from_window == 0 or step < first:
            return 1.0
        steps = self.anneal_windows * (self.anneal_steps or self.steps)
        return max(0, steps - (step - first)) / max(1, steps)

    def takes_muon(self, name: str, shape: tuple[int, ...]) -> bool:
        """Whether Muon updates this tensor: a matrix of a layer, in a run with Muon."""
        return self.optimiser == "muon" and len(shape) == 2 and name.startswith("model.layers.")


def read(kind: type[Spec], values: Mapping[str, Any]) -> Spec:
    """A specification from JSON. Unknown, missing or wrongly typed fields are errors."""
    names = {field.name: field.type for field in fields(kind)}
    if set(values) != set(names):
        raise ValueError(f"{kind.__name__} has fields {sorted(names)}, but {sorted(values)} were given")
    for name, type_name in names.items():
        value = values[name]
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        fits = {
            "bool": isinstance(value, bool),
            "int": is_number and value == int(value),
            "float": is_number,
            "str": isinstance(value, str),
        }
        if not fits[str(type_name)] or (is_number and not 0 <= value < 1 << 53):
            raise ValueError(f"{kind.__name__}.{name} is {value!r}, which is not a valid {type_name}")
    if values.get("optimiser", "adamw") not in OPTIMISERS:
        raise ValueError(f"{kind.__name__}.optimiser is {values['optimiser']!r}, which is none of {OPTIMISERS}")
    return kind(**values)
