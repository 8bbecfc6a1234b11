//! Which miners a validator evaluates in a window, and on which samples. Nobody knows it before the block at the put
//! deadline.

use templar_protocol::hash::{Hash32, Hasher, Stream};
use templar_protocol::roster::EntryId;

/// The stream of all draws of `validator` in a window with this block at its put deadline.
pub fn draws(put_hash: &Hash32, validator: &EntryId) -> Stream {
    let mut hasher = Hasher::new("templar v1 evaluation draws");
    hasher.update(put_hash.as_bytes()).update_value(validator);
    hasher.into_stream()
}

/// At most `count` distinct elements of `items`, in the order drawn.
pub fn draw<T: Clone>(stream: &mut Stream, items: &[T], count: usize) -> Vec<T> {
    let mut items = items.to_vec();
    stream.shuffle(&mut items);
    items.truncate(count);
    items
}

/// At most `count` of those `candidates` that are `here`: up to half of them, rounded up, are some that are new to the
/// validator, since nobody is paid before it was evaluated; the lot among all others decides the rest, so that newcomers
/// cannot keep the others from being watched.
///
/// The lot is among all candidates, whatever became of their contributions: who knows the draws and hides then steps out of
/// the line, and does not draw anew for everybody.
pub fn draw_miners(
    stream: &mut Stream,
    candidates: &[EntryId],
    is_here: impl Fn(&EntryId) -> bool,
    is_new: impl Fn(&EntryId) -> bool,
    count: usize,
) -> Vec<EntryId> {
    let line = draw(stream, candidates, candidates.len()).into_iter().filter(|entry| is_here(entry));
    let (new, known): (Vec<EntryId>, Vec<EntryId>) = line.partition(|entry| is_new(entry));
    let first = count.div_ceil(2).min(new.len()).max(count.saturating_sub(known.len()).min(new.len()));
    new[..first].iter().chain(&known).copied().take(count).collect()
}

#[cfg(test)]
mod tests {
    use templar_protocol::testing::entry;

    use super::*;

    #[test]
    fn newcomers_are_drawn_first_and_the_rest_by_lot() {
        let miners: Vec<EntryId> = (0..10).map(entry).collect();
        let drawn = |seed: u8| {
            let mut stream = draws(&Hash32::of(&[seed]), &entry(99));
            draw_miners(&mut stream, &miners, |_| true, |entry| entry.uid.0 == 7, 3)
        };
        assert!((0..20).all(|seed| drawn(seed).len() == 3 && drawn(seed)[0] == entry(7)));
        assert!((1..20).any(|seed| drawn(seed) != drawn(0)));
        let of = |new: u16, count| {
            let drawn =
                draw_miners(&mut draws(&Hash32::of(b"x"), &entry(99)), &miners, |_| true, |of| of.uid.0 < new, count);
            (drawn.iter().filter(|of| of.uid.0 < new).count(), drawn.len())
        };
        assert_eq!([of(8, 4), of(9, 4), of(10, 4), of(1, 4)], [(2, 4), (3, 4), (4, 4), (1, 4)]);
    }
    /// Draws are known once the put deadline is past, and then every miner may still hide.
    #[test]
    fn who_hides_changes_nobody_elses_lot() {
        let miners: Vec<EntryId> = (0..10).map(entry).collect();
        for seed in 0..20_u8 {
            let drawn = |hidden: u16| {
                let mut stream = draws(&Hash32::of(&[seed]), &entry(99));
                draw_miners(&mut stream, &miners, |of| of.uid.0 != hidden, |_| false, 4)
            };
            let all = drawn(99);
            for hidden in 0..10 {
                let left: Vec<EntryId> = all.iter().copied().filter(|of| of.uid.0 != hidden).collect();
                assert_eq!(drawn(hidden)[..left.len()], left[..], "uid {hidden} hides");
            }
        }
    }
}
