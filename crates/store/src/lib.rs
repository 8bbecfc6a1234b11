//! templar-store
