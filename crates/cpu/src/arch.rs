//! Which vector instructions are used: the widest that the processor has.

use pulp::Arch;

#[cfg(test)]
thread_local! {
    /// What tests use instead of the widest on their thread.
    pub(crate) static FORCED: std::cell::Cell<Option<Arch>> = const { std::cell::Cell::new(None) };
}

/// Runs `kernel` with the widest vectors of this processor. Functions that it calls use them only if they are
/// `#[inline(always)]`.
#[inline]
pub fn simd<R>(kernel: impl FnOnce() -> R) -> R {
    arch().dispatch(kernel)
}

/// The widest vectors of this processor.
#[inline]
pub(crate) fn arch() -> Arch {
    #[cfg(not(test))]
    return Arch::new();
    #[cfg(test)]
    FORCED.get().unwrap_or_default()
}
