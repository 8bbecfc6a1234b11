//! The formats that are compared: ours through the real codec, the others as simply as possible.

use std::f64::consts::PI;
use std::fmt;
use std::sync::Arc;

use serde::Serialize;
use templar_codec::{Codec, EncodeError};
use templar_protocol::layout::Layout;
use templar_protocol::run::CodecKind;

use crate::codec;

/// Bits per value sent with 12 bits of position and 32 of value.
const PLAIN_BITS: f64 = 44.0;
/// As the reference system stores it: 12 bits of position and a byte of code.
const REFERENCE_BITS: f64 = 20.0;
/// Side of the square into which the cosine transform arranges a chunk.
const SIDE: usize = 64;

/// How Δ becomes what is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// The k largest values of each chunk, unchanged.
    Unquantised,
    /// topk-sign.
    OneBit,
    /// topk-2bit.
    TwoBit,
    /// The reference system's quantiser, from its description; see [`reference`].
    #[serde(rename = "reference-2bit")]
    Reference,
    /// topk-sign of the cosine transform (DCT-II) of full chunks, as in DeMo.
    OneBitDct,
    /// DiLoCo: every value as f32, no error feedback.
    Dense,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Unquantised => "top-k, unquantised",
            Self::OneBit => "topk-sign",
            Self::TwoBit => "topk-2bit",
            Self::Reference => "reference-2bit",
            Self::OneBitDct => "topk-sign of the DCT",
            Self::Dense => "dense f32 (DiLoCo)",
        })
    }
}

/// What a peer sends in one window, in the format's coordinates; 0 means not sent.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) values: Vec<f32>,
    pub(super) relative_error: f64,
    pub(super) bits_per_value: f64,
}

/// One peer's error feedback and the format that it sends in.
#[derive(Debug)]
pub(super) struct Compressor {
    format: Format,
    layout: Layout,
    codec: Codec,
    error: Vec<f32>,
    cosines: Vec<f64>,
}

impl Format {
    pub const ALL: [Self; 6] =
        [Self::Unquantised, Self::OneBit, Self::TwoBit, Self::Reference, Self::OneBitDct, Self::Dense];

    pub(super) fn compressor(self, layout: &Layout) -> Compressor {
        let kind = match self {
            Self::TwoBit => CodecKind::TopkTwoBit,
            Self::Dense => CodecKind::DenseF32,
            _ => CodecKind::TopkSign,
        };
        let cosine = |frequency: usize, at: usize| {
            let norm = if frequency == 0 { (1.0 / SIDE as f64).sqrt() } else { (2.0 / SIDE as f64).sqrt() };
            norm * (PI * (at as f64 + 0.5) * frequency as f64 / SIDE as f64).cos()
        };
        Compressor {
            format: self,
            layout: layout.clone(),
            codec: Codec::new(Arc::new(layout.clone()), &codec::spec(kind)),
            error: vec![0.0; layout.len()],
            cosines: (0..SIDE * SIDE).map(|at| cosine(at / SIDE, at % SIDE)).collect(),
        }
    }
}

impl Compressor {
    /// e ← β·e + Δ; what is sent is subtracted from e.
    pub(super) fn send(&mut self, delta: &[f32]) -> Result<Sent, EncodeError> {
        let mut delta = delta.to_vec();
        if self.format == Format::OneBitDct {
            self.transform(&mut delta, true);
        }
        if self.format == Format::Dense {
            return Ok(Sent { values: delta, relative_error: 0.0, bits_per_value: 32.0 });
        }
        let payload = self.codec.encode(&mut self.error, &delta)?;
        let bits = 8.0 * payload.len() as f64;
        let contribution = self.codec.decode(payload).expect("own payload");
        let mut values = vec![0.0; delta.len()];
        contribution.add_scaled(&mut values, 1.0);
        let mut bits_per_value = bits / contribution.values_sent().max(1) as f64;
        // All formats use the codec's choice of positions; only the values differ. The codec has already subtracted its
        // own values, so they are added back.
        contribution.add_scaled(&mut self.error, 1.0);
        let kept: Vec<f32> =
            values.iter().zip(&self.error).map(|(&sent, &e)| if sent == 0.0 { 0.0 } else { e }).collect();
        match self.format {
            Format::Unquantised => (values, bits_per_value) = (kept.clone(), PLAIN_BITS),
            Format::Reference => {
                values.clone_from(&kept);
                for tensor in self.layout.tensors() {
                    reference(&mut values[tensor.range()]);
                }
                bits_per_value = REFERENCE_BITS;
            }
            _ => {}
        }
        for (e, sent) in self.error.iter_mut().zip(&values) {
            *e -= sent;
        }
        let square = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>();
        let lost = square(&mut kept.iter().zip(&values).map(|(&kept, &sent)| f64::from(kept) - f64::from(sent)));
        let all = square(&mut kept.iter().map(|&kept| f64::from(kept)));
        Ok(Sent { values, relative_error: if all == 0.0 { 0.0 } else { lost / all }, bits_per_value })
    }

    /// Converts from the format's coordinates to parameters.
    pub(super) fn to_parameters(&self, mut values: Vec<f32>) -> Vec<f32> {
        if self.format == Format::OneBitDct {
            self.transform(&mut values, false);
        }
        values
    }

    /// The orthonormal two-dimensional cosine transform of every full chunk, or its inverse.
    fn transform(&self, values: &mut [f32], forward: bool) {
        for tensor in self.layout.tensors() {
            for chunk in values[tensor.range()].chunks_exact_mut(SIDE * SIDE) {
                let rows = self.along_rows(&chunk.iter().map(|&value| f64::from(value)).collect::<Vec<_>>(), forward);
                let both = self.along_rows(&transposed(&rows), forward);
                for (value, new) in chunk.iter_mut().zip(transposed(&both)) {
                    *value = new as f32;
                }
            }
        }
    }

    fn along_rows(&self, square: &[f64], forward: bool) -> Vec<f64> {
        let coefficient = |to: usize, from: usize| {
            if forward { self.cosines[to * SIDE + from] } else { self.cosines[from * SIDE + to] }
        };
        let value = |row: &[f64], to: usize| (0..SIDE).map(|from| row[from] * coefficient(to, from)).sum();
        square
            .chunks_exact(SIDE)
            .flat_map(|row| (0..SIDE).map(move |to| value(row, to)).collect::<Vec<f64>>())
            .collect()
    }
}

fn transposed(square: &[f64]) -> Vec<f64> {
    (0..SIDE * SIDE).map(|at| square[at % SIDE * SIDE + at / SIDE]).collect()
}

/// The reference system's quantiser on one tensor: four bins 1.5 σ wide around the mean (offset by half a bin), each
/// value sent as the mean of its bin. Zeros were not sent.
fn reference(values: &mut [f32]) {
    let sent: Vec<usize> = (0..values.len()).filter(|&at| values[at] != 0.0).collect();
    if sent.len() < 2 {
        return;
    }
    let mean = sent.iter().map(|&at| f64::from(values[at])).sum::<f64>() / sent.len() as f64;
    let centred = |value: f32| f64::from(value) - mean;
    let squares: f64 = sent.iter().map(|&at| centred(values[at]).powi(2)).sum();
    let width = 6.0 * (squares / (sent.len() - 1) as f64).sqrt() / 4.0;
    let bin = |value: f32| ((centred(value) / width + 2.0).round_ties_even() as i64).clamp(0, 3) as usize;
    let (mut sums, mut counts) = ([0.0; 4], [0.0; 4]);
    for &at in &sent {
        sums[bin(values[at])] += centred(values[at]);
        counts[bin(values[at])] += 1.0;
    }
    for at in sent {
        let code = bin(values[at]);
        values[at] = (sums[code] / f64::max(counts[code], 1.0) + mean) as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_transform_is_orthonormal() {
        let layout = Layout::new([("w".to_owned(), vec![64, 70])]);
        let compressor = Format::OneBitDct.compressor(&layout);
        let values: Vec<f32> = (0..layout.len()).map(|at| ((at * 37) % 101) as f32 - 50.0).collect();
        let mut there = values.clone();
        compressor.transform(&mut there, true);
        let energy = |values: &[f32]| values.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>();
        assert!((energy(&there) / energy(&values) - 1.0).abs() < 1e-5);
        assert!((there[0] - values[0]).abs() > 1.0, "it does something");
        let back = compressor.to_parameters(there);
        assert!(values.iter().zip(&back).all(|(a, b)| (a - b).abs() < 1e-3));
    }

    #[test]
    fn the_reference_quantiser_degenerates_to_signs() {
        let mut values: Vec<f32> =
            (0..1000).map(|at| (1.0 + (at % 7) as f32 / 10.0) * if at % 2 == 0 { 1.0 } else { -1.0 }).collect();
        reference(&mut values);
        let mut codes: Vec<u32> = values.iter().map(|value| value.to_bits()).collect();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), 2);
    }
}
