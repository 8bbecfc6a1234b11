//! templar-train
