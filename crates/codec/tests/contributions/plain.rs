//! A second writer of the format, and a second transform, from their specifications: what every other implementation must do.

use std::f64::consts::PI;
use std::sync::LazyLock;

use templar_protocol::layout::Layout;
use templar_protocol::run::{CodecKind, CodecSpec};

/// The one payload that sends exactly `sent`: values that a payload of this codec can hold.
pub(crate) fn write(layout: &Layout, spec: &CodecSpec, sent: &[f32]) -> Vec<u8> {
    let (chunk, per_segment) = (spec.chunk as usize, (65_536 / spec.chunk.max(8) as usize).max(1));
    let mut segments = Vec::new();
    for tensor in layout.tensors() {
        let values = &sent[tensor.range()];
        let (full, tail) = values.split_at(values.len() / chunk * chunk);
        segments.extend(full.chunks(chunk * per_segment).map(|values| segment(values, chunk, spec)));
        if !tail.is_empty() {
            segments.push(segment(tail, tail.len(), spec));
        }
    }
    let mut payload = vec![b'T', b'C', 1, spec.kind as u8];
    for (segment, states_length) in &segments {
        if *states_length {
            payload.extend((segment.len() as u16).to_le_bytes());
        }
    }
    payload.extend(segments.into_iter().flat_map(|(segment, _)| segment));
    payload
}

/// The bytes of a segment, and whether they could have had another length.
fn segment(values: &[f32], len: usize, spec: &CodecSpec) -> (Vec<u8>, bool) {
    if spec.kind == CodecKind::DenseF32 {
        return (values.iter().flat_map(|value| value.to_le_bytes()).collect(), false);
    }
    let k = (spec.k as usize * len).div_ceil(spec.chunk as usize);
    let b = (0..17).take_while(|b| (13 * k) << b <= 9 * len).last().unwrap_or(0);
    let (mut fixed, mut unary) = (Vec::new(), Vec::new());
    for chunk in values.chunks(len) {
        let mut positions: Vec<usize> = (0..len).filter(|&position| chunk[position] != 0.0).collect();
        let high = positions.iter().map(|&position| chunk[position].abs()).fold(0.0, f32::max);
        let low = positions.iter().map(|&position| chunk[position].abs()).find(|&value| value < high);
        if positions.is_empty() {
            positions = (0..k).collect();
        }
        assert_eq!(positions.len(), k, "a chunk sends k values or none");
        let scale = if high == 0.0 { 0 } else { (high.to_bits() >> 20) - 792 };
        fixed.extend(bits(u64::from(scale), 8));
        if spec.kind == CodecKind::TopkTwoBit {
            let ratio = low.map_or(0, |low| ((low / high * 32.0 - 1.0) / 2.0) as u64);
            fixed.extend(bits(ratio, 4));
        }
        fixed.extend(positions.iter().map(|&position| chunk[position] < 0.0));
        if spec.kind == CodecKind::TopkTwoBit {
            fixed.extend(positions.iter().map(|&position| high > 0.0 && chunk[position].abs() == high));
        }
        let gaps = || (0..k).map(|index| positions[index] - if index == 0 { 0 } else { positions[index - 1] + 1 });
        for plane in 0..b {
            fixed.extend(gaps().map(|gap| gap >> plane & 1 == 1));
        }
        for gap in gaps() {
            unary.extend(std::iter::repeat_n(false, gap >> b));
            unary.push(true);
        }
    }
    let chunks = values.len() / len;
    let (least, most) = (fixed.len() + chunks * k, fixed.len() + chunks * (k + ((len - k) >> b)));
    fixed.extend(unary);
    let bytes = fixed.chunks(8).map(|byte| byte.iter().rev().fold(0, |byte, &bit| byte << 1 | u8::from(bit)));
    (bytes.collect(), least.div_ceil(8) < most.div_ceil(8))
}

fn bits(value: u64, count: usize) -> impl Iterator<Item = bool> {
    (0..count).map(move |bit| value >> bit & 1 == 1)
}

/// What sums of coefficients are in parameters, in place: full chunks of 4096 are transformed.
pub(crate) fn inverse_dct(layout: &Layout, sums: &mut [i128]) {
    for tensor in layout.tensors() {
        for chunk in sums[tensor.range()].chunks_exact_mut(4096) {
            let rows: Vec<Vec<i128>> = chunk.chunks(64).map(inverse_line).collect();
            for column in 0..64 {
                let line: Vec<i128> = rows.iter().map(|row| row[column]).collect();
                for (row, value) in inverse_line(&line).into_iter().enumerate() {
                    chunk[64 * row + column] = value;
                }
            }
        }
    }
}

fn inverse_line(line: &[i128]) -> Vec<i128> {
    let sum = |n: usize| line.iter().zip(&*FREQUENCIES).map(|(value, row)| value * row[n]).sum::<i128>();
    (0..64).map(|n| (sum(n) + (1 << 28)) >> 29).collect()
}

/// A of the specification.
static FREQUENCIES: LazyLock<Vec<Vec<i128>>> = LazyLock::new(|| {
    let cosine = |angle: usize| (2f64.powf(26.5) * (angle as f64 * PI / 128.0).cos()).round() as i128;
    let entry = |k: usize, n: usize| if k == 0 { 1 << 26 } else { cosine((2 * n + 1) * k % 256) };
    (0..64).map(|k| (0..64).map(|n| entry(k, n)).collect()).collect()
});
