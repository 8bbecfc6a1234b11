//! What precedes the segments of a payload: its head, and the lengths of the segments.

use templar_protocol::run::CodecKind;

use crate::format::{DecodeError, HEAD_BYTES, LENGTH_BYTES, MAGIC, VERSION};
use crate::plan::Plan;

pub(crate) fn write_head(payload: &mut [u8], kind: CodecKind) {
    payload[..2].copy_from_slice(&MAGIC);
    payload[2] = VERSION;
    payload[3] = kind as u8;
}

/// Checks head and lengths; returns where each segment starts, and where the last one ends.
pub(crate) fn read_frame(payload: &[u8], plan: &Plan) -> Result<Vec<usize>, DecodeError> {
    if !plan.payload_bytes.contains(&payload.len()) {
        let (least, most) = (*plan.payload_bytes.start() as u64, *plan.payload_bytes.end() as u64);
        return Err(DecodeError::WrongLength { found: payload.len() as u64, least, most });
    }
    if payload[..2] != MAGIC {
        return Err(DecodeError::WrongMagic { found: [payload[0], payload[1]] });
    }
    if payload[2] != VERSION {
        return Err(DecodeError::UnknownVersion { found: payload[2] });
    }
    if payload[3] != plan.kind as u8 {
        return Err(DecodeError::WrongKind { found: payload[3], expected: plan.kind as u8 });
    }
    let mut starts = Vec::with_capacity(plan.segments.len() + 1);
    let mut at = plan.bodies_at();
    let mut lengths = payload[HEAD_BYTES..at].as_chunks::<LENGTH_BYTES>().0.iter();
    for (index, segment) in plan.segments.iter().enumerate() {
        let range = segment.byte_range();
        let stated = if segment.states_length() { lengths.next() } else { None };
        let length = stated.map_or(*range.start(), |bytes| usize::from(u16::from_le_bytes(*bytes)));
        if !range.contains(&length) {
            return Err(DecodeError::SegmentLength {
                segment: index as u64,
                found: length as u64,
                least: *range.start() as u64,
                most: *range.end() as u64,
            });
        }
        starts.push(at);
        at += length;
    }
    starts.push(at);
    if at != payload.len() {
        return Err(DecodeError::WrongTotal { found: payload.len() as u64, declared: at as u64 });
    }
    Ok(starts)
}
