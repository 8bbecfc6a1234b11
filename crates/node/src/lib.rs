//! templar-node
