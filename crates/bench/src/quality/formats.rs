//! The formats that are compared: ours through the real codec, the others as simply as possible.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;
use templar_codec::{Codec, Contribution, EncodeError, outer_step};
use templar_protocol::layout::Layout;
use templar_protocol::run::{CodecKind, CodecSpec, OuterSpec, Transform};

use crate::codec;

/// Bits per value sent with 12 bits of position and 32 of value.
const PLAIN_BITS: f64 = 44.0;
/// As the reference system stores it: 12 bits of position and a byte of code.
const REFERENCE_BITS: f64 = 20.0;
/// Side of the square that the cosine transform takes.
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
    /// topk-sign of the cosine transform of full chunks: the protocol's.
    OneBitDct,
    /// The same of 64 × 64 tiles of matrices, as in DeMo: the protocol's on reordered parameters.
    OneBitDctTiles,
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
            Self::OneBitDctTiles => "topk-sign of the DCT of tiles",
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
    /// What [`Compressor::take_step`] takes, if the coordinates are not those of parameters.
    pub(super) transformed: Option<Contribution>,
}

/// One peer's error feedback and the format that it sends in.
#[derive(Debug)]
pub(super) struct Compressor {
    format: Format,
    layout: Layout,
    codec: Codec,
    error: Vec<f32>,
    /// Where each of the codec's parameters lies in the model.
    order: Vec<usize>,
}

impl Format {
    pub const ALL: [Self; 7] = [
        Self::Unquantised,
        Self::OneBit,
        Self::TwoBit,
        Self::Reference,
        Self::OneBitDct,
        Self::OneBitDctTiles,
        Self::Dense,
    ];

    /// Whether contributions are summed in coordinates other than parameters.
    pub(super) fn is_transformed(self) -> bool {
        matches!(self, Self::OneBitDct | Self::OneBitDctTiles)
    }

    pub(super) fn compressor(self, layout: &Layout) -> Compressor {
        let kind = match self {
            Self::TwoBit => CodecKind::TopkTwoBit,
            Self::Dense => CodecKind::DenseF32,
            _ => CodecKind::TopkSign,
        };
        let transform = if self.is_transformed() { Transform::Dct } else { Transform::None };
        Compressor {
            format: self,
            layout: layout.clone(),
            codec: Codec::new(Arc::new(layout.clone()), &CodecSpec { transform, ..codec::spec(kind) }),
            error: vec![0.0; layout.len()],
            order: if self == Self::OneBitDctTiles { by_tiles(layout) } else { (0..layout.len()).collect() },
        }
    }
}

impl Compressor {
    /// e ← β·e + Δ; what is sent is subtracted from e.
    pub(super) fn send(&mut self, delta: &[f32]) -> Result<Sent, EncodeError> {
        let delta = self.ordered(delta);
        if self.format == Format::Dense {
            return Ok(Sent { values: delta, relative_error: 0.0, bits_per_value: 32.0, transformed: None });
        }
        let payload = self.codec.encode(&mut self.error, &delta)?;
        let bits = 8.0 * payload.len() as f64;
        let contribution = self.codec.decode(payload).expect("own payload");
        let mut values = vec![0.0; delta.len()];
        contribution.give_back(&mut values);
        let mut bits_per_value = bits / contribution.values_sent().max(1) as f64;
        // All formats use the codec's choice of positions; only the values differ. The codec has already subtracted its
        // own values, so they are added back.
        contribution.give_back(&mut self.error);
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
        let relative_error = if all == 0.0 { 0.0 } else { lost / all };
        let transformed = self.format.is_transformed().then_some(contribution);
        Ok(Sent { values, relative_error, bits_per_value, transformed })
    }

    /// θ after the protocol's own outer step with contributions of a transform, which `outer_step` turns into parameters.
    pub(super) fn take_step(&self, theta: &mut [f32], sent: &[Sent], outer: &OuterSpec) {
        let contributions: Vec<&Contribution> = sent.iter().filter_map(|sent| sent.transformed.as_ref()).collect();
        let mut ordered = self.ordered(theta);
        outer_step(&self.layout, &mut ordered, &contributions, outer);
        for (&at, moved) in self.order.iter().zip(ordered) {
            theta[at] = moved;
        }
    }

    /// Parameters in the order in which the format cuts them into chunks.
    fn ordered(&self, values: &[f32]) -> Vec<f32> {
        self.order.iter().map(|&at| values[at]).collect()
    }
}

/// The parameters of each matrix tile by tile, 64 rows by 64 columns, where it has both; the others as they are.
fn by_tiles(layout: &Layout) -> Vec<usize> {
    let mut order: Vec<usize> = (0..layout.len()).collect();
    for tensor in layout.tensors() {
        let [rows, columns] = tensor.shape[..] else { continue };
        let (rows, columns) = (rows as usize / SIDE * SIDE, columns as usize);
        if !columns.is_multiple_of(SIDE) {
            continue;
        }
        let key = |within: usize| {
            let (row, column) = (within / columns, within % columns);
            (row / SIDE, column / SIDE, row, column)
        };
        let start = tensor.range().start;
        order[start..start + rows * columns].sort_by_key(|&at| key(at - start));
    }
    order
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
    use templar_protocol::run::MeanOver;

    use super::*;

    #[test]
    fn tiles_are_squares_of_a_matrix() {
        let layout = Layout::new([("norm".to_owned(), vec![3]), ("w".to_owned(), vec![70, 128])]);
        let order = by_tiles(&layout);
        let at = |row: usize, column: usize| 3 + row * 128 + column;
        assert_eq!(order[..5], [0, 1, 2, at(0, 0), at(0, 1)]);
        assert_eq!((order[3 + SIDE], order[3 + SIDE * SIDE]), (at(1, 0), at(0, 64)));
        // Rows that fill no tile stay as they are.
        assert_eq!(order[3 + SIDE * 128..], (at(64, 0)..layout.len()).collect::<Vec<_>>());
        let mut sorted = order;
        sorted.sort_unstable();
        assert_eq!(sorted, (0..layout.len()).collect::<Vec<_>>());
    }

    /// One peer that owes something smooth in rows and columns: few coefficients of a tile have most of it.
    #[test]
    fn a_step_of_coefficients_moves_parameters() {
        let layout = Layout::new([("w".to_owned(), vec![128, 128])]);
        let smooth = |at: usize| ((at / 128) as f32 / 40.0).cos() * ((at % 128) as f32 / 40.0).cos();
        let delta: Vec<f32> = (0..layout.len()).map(smooth).collect();
        let left = |format: Format| {
            let mut compressor = format.compressor(&layout);
            let sent = compressor.send(&delta).unwrap();
            let mut theta = delta.clone();
            compressor.take_step(
                &mut theta,
                &[sent],
                &OuterSpec { rate: 1.0, mean_over: MeanOver::Peers, min_senders: 1 },
            );
            theta.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>()
        };
        let all: f64 = delta.iter().map(|&value| f64::from(value).powi(2)).sum();
        let (tiles, runs) = (left(Format::OneBitDctTiles), left(Format::OneBitDct));
        // Which of the two leaves less depends on how one level fits their coefficients.
        assert!(tiles < all && runs < all && (tiles - runs).abs() > 1.0, "{tiles} {runs} {all}");
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
