//! templar-chain
