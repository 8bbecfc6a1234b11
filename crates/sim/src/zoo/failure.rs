//! Failures of machines and services: nobody means them, and nobody else may be blamed for them.

pub mod cut_off_chain;
pub mod damaged_dataset;
pub mod disk;
pub mod not_a_number;
pub mod outage;
pub mod skewed_clock;
