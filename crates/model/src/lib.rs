//! templar-model
