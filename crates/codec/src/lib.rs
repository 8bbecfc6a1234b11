//! templar-codec
