//! templar
