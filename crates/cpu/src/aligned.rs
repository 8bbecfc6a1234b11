//! Slices that begin with a cache line.

use std::ops::{Deref, DerefMut};

/// Elements of a cache line.
pub(crate) const LINE: usize = 16;

/// Values from the beginning of a cache line on: vectors of 64 bytes that lie across two lines cost as much as two.
#[derive(Debug, Default)]
pub(crate) struct Aligned {
    values: Vec<f32>,
    start: usize,
    len: usize,
}

impl Aligned {
    /// Makes it as long as asked, without giving memory back. Its values are whatever was there.
    pub(crate) fn resize(&mut self, len: usize) {
        if self.values.len() < self.start + len {
            self.values = vec![0.0; len + LINE - 1];
            // A platform that cannot tell the place of memory gets none that is aligned.
            self.start = self.values.as_ptr().align_offset(size_of::<[f32; LINE]>()).min(LINE - 1);
        }
        self.len = len;
    }

    /// At least `len` values, of which the first `len`.
    pub(crate) fn room(&mut self, len: usize) -> &mut [f32] {
        self.resize(len.max(self.len));
        &mut self[..len]
    }
}

impl Deref for Aligned {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.values[self.start..][..self.len]
    }
}

impl DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.values[self.start..][..self.len]
    }
}
