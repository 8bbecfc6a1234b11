//! templar-sim
