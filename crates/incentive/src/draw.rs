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

/// At most `count` of `miners`: first those that were `new` to the validator, since nobody is paid before it was
/// evaluated, then the others; the stream's lot orders equal ones.
pub fn draw_miners(
    stream: &mut Stream,
    miners: &[EntryId],
    is_new: impl Fn(&EntryId) -> bool,
    count: usize,
) -> Vec<EntryId> {
    let mut drawn = draw(stream, miners, miners.len());
    drawn.sort_by_key(|entry| !is_new(entry));
    drawn.truncate(count);
    drawn
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
            draw_miners(&mut stream, &miners, |entry| entry.uid.0 == 7, 3)
        };
        assert!((0..20).all(|seed| drawn(seed).len() == 3 && drawn(seed)[0] == entry(7)));
        assert!((1..20).any(|seed| drawn(seed) != drawn(0)));
    }
}
