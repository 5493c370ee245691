//! `fastrand`'s functions, drawn from the seed.

use std::ops::RangeBounds;

use super::world;

pub fn u64(range: impl RangeBounds<u64>) -> u64 {
    world::current().chance_of_process(|rng| rng.u64(range))
}

pub fn i32(range: impl RangeBounds<i32>) -> i32 {
    world::current().chance_of_process(|rng| rng.i32(range))
}

pub fn f64() -> f64 {
    world::current().chance_of_process(fastrand::Rng::f64)
}

pub fn fill(bytes: &mut [u8]) {
    world::current().chance_of_process(|rng| rng.fill(bytes));
}
