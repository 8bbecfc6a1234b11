"""The decoder: token embedding, pre-norm blocks of grouped-query attention and SwiGLU, final norm, output projection.

It computes what Hugging Face's ``LlamaForCausalLM`` does: RMSNorm, rotary embedding by rotated halves, no biases,
optionally the embedding as output projection. With norms of queries and keys it is ``Qwen3ForCausalLM``. Parameters carry Hugging Face's names and are f32, so that the optimiser
always works on f32; products run in ``compute_dtype``. Weights are cast to it where they are used, or once per step
(:class:`Linear`).

Shapes in names: B sequences, T positions, D hidden, H heads, K key-value heads, E elements of a head, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .attention import attend
from .spec import ModelSpec

IGNORED = -100
"""Target of a position without a target."""


class Weight(nn.Module):
    """One parameter; its name in the model is the module's name and ``.weight``."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(*shape))


class Linear(Weight):
    """x Wᵀ for a weight of shape [out, in], in the precision of x.

    The weight can also be kept in that precision. It is then cast once per step rather than in each pass, and its
    gradient is added from the product directly to the f32 gradient.
    """

    narrow: Tensor | None = None
    """The weight in the precision of products, as of the last :meth:`refresh`."""

    def __init__(self, size_in: int, size_out: int) -> None:
        super().__init__(size_out, size_in)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype) if self.narrow is None else self.narrow)

    @torch.no_grad()
    def refresh(self, dtype: torch.dtype) -> None:
        """Sets the narrow weight to what the weight is now, without a gradient."""
        if self.narrow is None:
            self.narrow = torch.empty_like(self.weight, dtype=dtype).requires_grad_()
            self.narrow.register_post_accumulate_grad_hook(self._widen)
        self.narrow.copy_(self.weight)
        self.narrow.grad = None

    def _widen(self, narrow: Tensor) -> None:
        """Adds the gradient of a pass to that of the step, in f32."""
        gradient, narrow.grad = narrow.grad, None
        assert gradient is not None
        if self.weight.grad is None:
            self.weight.grad = gradient.float()
        else:
            self.weight.grad += gradient


class RmsNorm(Weight):
    """Root-mean-square norm, computed in f32."""

    def __init__(self, size: int, epsilon: float) -> None:
        super().__init__(size)
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.epsilon)
        return (wide * scale * self.weight.float()).to(x.dtype)


def rotary_tables(spec: ModelSpec) -> tuple[Tensor, Tensor]:
    """cos and sin of position · base^(−2i/E), each [T, E/2]. Computed on the CPU, as not every device has f64."""
    half = spec.head_dim // 2
    positions = torch.arange(spec.seq_len, dtype=torch.float64, device="cpu")
    frequencies = spec.rope_theta ** (-2.0 * torch.arange(half, dtype=torch.float64, device="cpu") / spec.head_dim)
    angles_te = torch.outer(positions, frequencies)
    return angles_te.cos().float(), angles_te.sin().float()


def rotate(x_bhte: Tensor, cos_te: Tensor, sin_te: Tensor) -> Tensor:
    """Rotates elements i and i + E/2 together, by the angle of their position."""
    first, second = x_bhte.float().chunk(2, dim=-1)
    turned = torch.cat((first * cos_te - second * sin_te, second * cos_te + first * sin_te), dim=-1)
    return turned.to(x_bhte.dtype)


class Attention(nn.Module):
    """Causal attention in which several heads share a key and a value."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        d, kv = spec.hidden_size, spec.kv_heads * spec.head_dim
        self.head_dim = spec.head_dim
        self.q_proj = Linear(d, d)
        self.k_proj = Linear(d, kv)
        self.v_proj = Linear(d, kv)
        self.o_proj = Linear(d, d)
        self.q_norm = RmsNorm(spec.head_dim, spec.norm_eps) if spec.qk_norm else None
        self.k_norm = RmsNorm(spec.head_dim, spec.norm_eps) if spec.qk_norm else None

    def forward(self, x_btd: Tensor, cos_te: Tensor, sin_te: Tensor) -> Tensor:
        def heads(projected: Tensor) -> Tensor:
            return projected.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

        query_bhte, key_bkte = heads(self.q_proj(x_btd)), heads(self.k_proj(x_btd))
        if self.q_norm is not None and self.k_norm is not None:
            query_bhte, key_bkte = self.q_norm(query_bhte), self.k_norm(key_bkte)
        query_bhte, key_bkte = rotate(query_bhte, cos_te, sin_te), rotate(key_bkte, cos_te, sin_te)
        value_bkte = heads(self.v_proj(x_btd))
        mixed_bhte = attend(query_bhte, key_bkte, value_bkte)
        return self.o_proj(mixed_bhte.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) · up(x))."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.gate_proj = Linear(spec.hidden_size, spec.ffn_size)
        self.up_proj = Linear(spec.hidden_size, spec.ffn_size)
        self.down_proj = Linear(spec.ffn_size, spec.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """One layer; the order of its parts is the canonical order of its parameters."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.input_layernorm = RmsNorm(spec.hidden_size, spec.norm_eps)
        self.self_attn = Attention(spec)
        self.post_attention_layernorm = RmsNorm(spec.hidden_size, spec.norm_eps)
        self.mlp = FeedForward(spec)

    def forward(self, x_btd: Tensor, cos_te: Tensor, sin_te: Tensor) -> Tensor:
        x_btd = x_btd + self.self_attn(self.input_layernorm(x_btd), cos_te, sin_te)
        return x_btd + self.mlp(self.post_attention_layernorm(x_btd))


class Embedding(Weight):
    """Rows of a [V, D] weight by token."""

    def forward(self, tokens_bt: Tensor) -> Tensor:
        return F.embedding(tokens_bt, self.weight)


class Decoder(nn.Module):
    """Embedding, blocks and final norm: Hugging Face's ``model.``"""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.embed_tokens = Embedding(spec.vocab_size, spec.hidden_size)
        self.layers = nn.ModuleList(Block(spec) for _ in range(spec.layers))
        self.norm = RmsNorm(spec.hidden_size, spec.norm_eps)


class Llama(nn.Module):
    """The whole model. It has only shapes until :meth:`materialise` allocates memory; parameters come from the node."""

    cos_te: Tensor
    sin_te: Tensor

    def __init__(
        self, spec: ModelSpec, compute_dtype: torch.dtype, checkpointed: int = 0, z_loss: float = 0.0
    ) -> None:
        super().__init__()
        self.spec = spec
        self.z_loss = z_loss
        """ζ: gradients are those of loss + ζ·(log Z)² of every target, losses are without it."""
        self.compute_dtype = compute_dtype
        self.checkpointed = checkpointed
        """How many layers recompute their activations in the backward pass instead of keeping them."""
        with torch.device("meta"):
            self.model = Decoder(spec)
            self.lm_head = None if spec.tied_embeddings else Linear(spec.hidden_size, spec.vocab_size)
            for name in ("cos_te", "sin_te"):
                self.register_buffer(name, torch.empty(spec.seq_len, spec.head_dim // 2), persistent=False)

    def materialise(self, device: torch.device) -> None:
        """Allocates memory for the parameters; only for this rank's shards if they have been sharded."""
        self.to_empty(device=device)
        for buffer, table in zip((self.cos_te, self.sin_te), rotary_tables(self.spec), strict=True):
            buffer.copy_(table)

    def compile_parts(self) -> None:
        """Compiles block by block, so that all layers share one compilation; and the loss."""
        for block in self.model.layers:
            block.compile()
        self.token_losses = torch.compile(self.token_losses)  # type: ignore[method-assign]

    def forward(self, tokens_bt: Tensor) -> Tensor:
        """Mean loss of each sequence, in nats per target token: [B].

        All T positions pass through the model, although the last predicts nothing: 2,048 suits a GPU's tiles, and 2,047
        does not.
        """
        positions = tokens_bt.shape[1]
        cos_te, sin_te = self.cos_te[:positions], self.sin_te[:positions]
        x_btd = self.model.embed_tokens(tokens_bt).to(self.compute_dtype)
        for nth, block in enumerate(self.model.layers):
            if nth < self.checkpointed and torch.is_grad_enabled():
                x_btd = checkpoint(block, x_btd, cos_te, sin_te, use_reentrant=False)
            else:
                x_btd = block(x_btd, cos_te, sin_te)
        targets_bt = F.pad(tokens_bt[:, 1:], (0, 1), value=IGNORED)
        return self.token_losses(x_btd, targets_bt).sum(1) / (positions - 1)

    def token_losses(self, x_btd: Tensor, targets_bt: Tensor) -> Tensor:
        """Cross-entropy of each position, 0 where there is no target: [B, T]. The softmax is computed in f32."""
        logits_nv, targets_n = self.logits(x_btd).flatten(0, 1).float(), targets_bt.flatten()
        losses_n = F.cross_entropy(logits_nv, targets_n, reduction="none", ignore_index=IGNORED)
        if self.z_loss > 0.0 and torch.is_grad_enabled():
            penalties_n = self.z_loss * logits_nv.logsumexp(1).square() * (targets_n != IGNORED)
            losses_n = losses_n + (penalties_n - penalties_n.detach())
        return losses_n.view_as(targets_bt)

    def logits(self, x_btd: Tensor) -> Tensor:
        normed_btd = self.model.norm(x_btd)
        if self.lm_head is not None:
            return self.lm_head(normed_btd)
        return F.linear(normed_btd, self.model.embed_tokens.weight.to(normed_btd.dtype))
