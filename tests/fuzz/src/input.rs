//! Takes an input apart.

/// The first byte, 0 if there is none.
pub fn byte(input: &mut &[u8]) -> u8 {
    match input.split_first() {
        Some((first, rest)) => {
            *input = rest;
            *first
        }
        None => 0,
    }
}

/// Up to so many bytes.
pub fn bytes<'a>(input: &mut &'a [u8], most: usize) -> &'a [u8] {
    let (taken, rest) = input.split_at(most.min(input.len()));
    *input = rest;
    taken
}

/// A number of two bytes.
pub fn short(input: &mut &[u8]) -> u16 {
    u16::from_le_bytes([byte(input), byte(input)])
}
