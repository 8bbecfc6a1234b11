//! Slices that begin at a cache line.

use std::ops::{Deref, DerefMut};

/// Elements of a cache line.
pub(crate) const LINE: usize = 16;

/// Values that begin at a cache line, because a vector of 64 bytes across two lines costs as much as two vectors.
#[derive(Debug, Default)]
pub(crate) struct Aligned {
    values: Vec<f32>,
    start: usize,
    len: usize,
}

impl Aligned {
    /// Sets the length without giving memory back. The values are whatever was there before.
    pub(crate) fn resize(&mut self, len: usize) {
        if self.values.len() < self.start + len {
            self.values = vec![0.0; len + LINE - 1];
            // Where the alignment of memory cannot be determined, the values stay unaligned.
            self.start = self.values.as_ptr().align_offset(size_of::<[f32; LINE]>()).min(LINE - 1);
        }
        self.len = len;
    }

    /// Makes room for at least `len` values, and returns the first `len`.
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
