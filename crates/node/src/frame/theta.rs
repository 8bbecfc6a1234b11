//! θ on disk: whole from time to time, and in between only what changed.
//!
//! An outer step moves few coordinates: with four senders at 64 of 4096 at most 6 % of them. A patch is a bitmap of
//! those that changed, then their new values; it is exact, and applies to the one θ that it was made from.

/// A patch from `old` to `new`; `None` if it is not shorter than half of `new`.
pub(crate) fn patch(old: &[f32], new: &[f32]) -> Option<Vec<u8>> {
    if old.len() != new.len() {
        return None;
    }
    // Compared by bits, because the root distinguishes −0 from 0.
    let changed = |(old, new): (&f32, &f32)| old.to_bits() != new.to_bits();
    let count = old.iter().zip(new).filter(|&(old, new)| changed((old, new))).count();
    let bitmap_bytes = new.len().div_ceil(8);
    let length = bitmap_bytes + 4 * count;
    if length >= 2 * new.len() {
        return None;
    }
    let mut patch = vec![0; bitmap_bytes];
    patch.reserve_exact(4 * count);
    for (nth, (old, new)) in old.iter().zip(new).enumerate() {
        if changed((old, new)) {
            patch[nth / 8] |= 1 << (nth % 8);
            patch.extend(new.to_le_bytes());
        }
    }
    Some(patch)
}

/// Applies a patch; false if `patch` is not for a θ of this length.
pub(crate) fn apply(theta: &mut [f32], patch: &[u8]) -> bool {
    let Some((bitmap, values)) = patch.split_at_checked(theta.len().div_ceil(8)) else { return false };
    let (values, rest) = values.as_chunks::<4>();
    let is_set = |nth: usize| bitmap[nth / 8] >> (nth % 8) & 1 == 1;
    let count = (0..8 * bitmap.len()).filter(|&nth| is_set(nth)).count();
    if !rest.is_empty() || count != values.len() {
        return false;
    }
    let mut values = values.iter();
    for (_, value) in theta.iter_mut().enumerate().filter(|(nth, _)| is_set(*nth)) {
        let Some(new) = values.next() else { return false };
        *value = f32::from_le_bytes(*new);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_is_exact_and_applies_to_nothing_else() {
        let old: Vec<f32> = (0..1000u16).map(f32::from).collect();
        let mut new = old.clone();
        (new[0], new[7], new[999]) = (-0.0, f32::MIN_POSITIVE / 2.0, -1.5);
        let patch = patch(&old, &new).unwrap();
        assert_eq!(patch.len(), 125 + 3 * 4);
        let mut theta = old.clone();
        assert!(apply(&mut theta, &patch));
        assert!(theta.iter().zip(&new).all(|(a, b)| a.to_bits() == b.to_bits()));
        for wrong in [&patch[..patch.len() - 1], &patch[..patch.len() - 4], &patch[..20]] {
            assert!(!apply(&mut theta, wrong));
        }
        assert!(!apply(&mut theta[..100], &patch));
        assert_eq!(super::patch(&old, &vec![0.5; 1000]), None, "all of it changed");
    }
}
