//! Promotions that wait, and those that nobody has to ask for.

pub(crate) mod automatic;
mod look;
pub(crate) mod waiting;
