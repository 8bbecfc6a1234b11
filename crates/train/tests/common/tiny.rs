//! A model of a few hundred parameters.

use templar_model::presets;
use templar_protocol::layout::ModelSpec;
use templar_protocol::run::InnerSpec;

/// Three sequences in its micro-batches of two leave a smaller last one.
pub(crate) fn tiny(tied_embeddings: bool) -> (ModelSpec, InnerSpec) {
    let preset = presets::preset("nano").expect("a preset");
    let model = ModelSpec {
        vocab_size: 32,
        hidden_size: 16,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        ffn_size: 24,
        seq_len: 8,
        tied_embeddings,
        ..preset.model
    };
    (model, InnerSpec { micro_batch_sequences: 2, warmup_steps: 2, ..preset.inner })
}
