//! templar-data
