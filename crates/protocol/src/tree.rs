//! One root over many parts, such that any part can be checked against the root when it arrives, alone.
//!
//! A binary tree of BLAKE3 digests: neighbours are joined, level by level, and a last one without a neighbour moves up
//! as it is. The root covers the number of leaves, so that no inner node can pass for a leaf.

use crate::hash::{Hash32, Hasher};

/// The root over `leaves`.
pub fn root(leaves: &[Hash32]) -> Hash32 {
    let mut level = leaves.to_vec();
    while level.len() > 1 {
        level = level.chunks(2).map(join).collect();
    }
    finish(leaves.len(), level.first().copied().unwrap_or_default())
}

/// What proves that leaf `nth` belongs to the root over `leaves`: its neighbours on the way up, lowest first.
///
/// # Panics
/// If there is no such leaf.
pub fn proof(leaves: &[Hash32], nth: usize) -> Vec<Hash32> {
    assert!(nth < leaves.len(), "leaf {nth} of {}", leaves.len());
    let (mut level, mut at, mut proof) = (leaves.to_vec(), nth, Vec::new());
    while level.len() > 1 {
        proof.extend(level.get(at ^ 1));
        level = level.chunks(2).map(join).collect();
        at /= 2;
    }
    proof
}

/// Whether `proof` shows that `leaf` is leaf `nth` of the `count` leaves under `root`.
pub fn verify(root: &Hash32, count: usize, nth: usize, leaf: Hash32, proof: &[Hash32]) -> bool {
    if nth >= count {
        return false;
    }
    let (mut hash, mut at, mut width, mut neighbours) = (leaf, nth, count, proof.iter());
    while width > 1 {
        if (at ^ 1) < width {
            let Some(&neighbour) = neighbours.next() else { return false };
            hash = if at.is_multiple_of(2) { join(&[hash, neighbour]) } else { join(&[neighbour, hash]) };
        }
        (at, width) = (at / 2, width.div_ceil(2));
    }
    neighbours.next().is_none() && finish(count, hash) == *root
}

/// The parent of one or two neighbours.
fn join(pair: &[Hash32]) -> Hash32 {
    match pair {
        [left, right] => {
            let mut hasher = Hasher::new("templar v2 tree node");
            hasher.update(left.as_bytes()).update(right.as_bytes()).finish()
        }
        alone => alone.first().copied().unwrap_or_default(),
    }
}

fn finish(count: usize, top: Hash32) -> Hash32 {
    Hash32::of_value("templar v2 tree root", &(count as u64, top))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn leaves(count: usize) -> Vec<Hash32> {
        (0..count).map(|nth| Hash32::of(&(nth as u64).to_le_bytes())).collect()
    }

    #[test]
    fn the_number_of_leaves_is_part_of_the_root() {
        let roots: Vec<Hash32> = (0..40).map(|count| root(&leaves(count))).collect();
        assert!(roots.iter().enumerate().all(|(nth, one)| !roots[..nth].contains(one)));
        // A tree of two whose leaves are the inner nodes of a tree of four has the same top, and another root.
        let four = leaves(4);
        assert_ne!(root(&[join(&four[..2]), join(&four[2..])]), root(&four));
    }

    /// Computed by another implementation, from the specification alone.
    #[test]
    fn golden() {
        let expected = "58722b88f8a58e53bc0e58537d23823dc5370084d94f174c08c6c71d6adf2cfc";
        assert_eq!(root(&leaves(5)).to_string(), expected);
    }

    proptest! {
        #[test]
        fn a_proof_shows_one_leaf_at_one_place(count in 1usize..70, nth in any::<prop::sample::Index>()) {
            let (leaves, nth) = (leaves(count), nth.index(count));
            let (root, proof) = (root(&leaves), proof(&leaves, nth));
            prop_assert!(verify(&root, count, nth, leaves[nth], &proof));
            prop_assert!(!verify(&root, count, nth, Hash32::of(b"other"), &proof));
            prop_assert!(!verify(&root, count + 1, nth, leaves[nth], &proof));
            for other in (0..count).filter(|&other| other != nth) {
                prop_assert!(!verify(&root, count, other, leaves[nth], &proof));
            }
            let longer = [proof.clone(), vec![Hash32::default()]].concat();
            prop_assert!(!verify(&root, count, nth, leaves[nth], &longer));
            if let Some((_, shorter)) = proof.split_last() {
                prop_assert!(!verify(&root, count, nth, leaves[nth], shorter));
            }
        }
    }
}
