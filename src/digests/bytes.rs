//! Numbers in as few bytes as they need, for [`file`](super::file): seven bits a byte, the lowest first.

use std::io::{self, BufRead, Read};

pub(super) fn put(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    out.push(number.to_le_bytes()[0]);
}

/// What a number is more, or less, than another: small either way.
pub(super) fn put_delta(out: &mut Vec<u8>, number: u64, from: u64) {
    let delta = number.wrapping_sub(from).cast_signed();
    put(out, ((delta << 1) ^ (delta >> 63)).cast_unsigned());
}

pub(super) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put(out, bytes.len() as u64);
    out.extend(bytes);
}

/// Reads them back, from anything.
pub(super) struct Bytes<R>(pub(super) R);

pub(super) fn unsound() -> io::Error {
    io::ErrorKind::InvalidData.into()
}

impl<R: BufRead> Bytes<R> {
    pub(super) fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.0.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    pub(super) fn byte(&mut self) -> io::Result<u8> {
        self.array().map(|[byte]| byte)
    }

    pub(super) fn number(&mut self) -> io::Result<u64> {
        let mut number = 0;
        for shift in (0..u64::BITS).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits {
                break;
            }
            number |= bits << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err(unsound())
    }

    pub(super) fn delta(&mut self, from: u64) -> io::Result<u64> {
        let folded = self.number()?;
        let delta = (folded >> 1).cast_signed() ^ -(folded & 1).cast_signed();
        Ok(from.wrapping_add_signed(delta))
    }

    /// As many as are said to follow, if that is not more than `most`.
    pub(super) fn bytes(&mut self, most: usize) -> io::Result<Vec<u8>> {
        let length = usize::try_from(self.number()?).ok().filter(|length| *length <= most).ok_or_else(unsound)?;
        let mut bytes = vec![0; length];
        self.0.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    pub(super) fn ends(&mut self) -> io::Result<bool> {
        self.0.fill_buf().map(<[u8]>::is_empty)
    }
}

/// Reads through, and tells each portion.
pub(super) struct Tapped<R, F>(pub(super) R, pub(super) F);

impl<R: Read, F: FnMut(&[u8])> Read for Tapped<R, F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.0.read(buffer)?;
        (self.1)(&buffer[..length]);
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn numbers_come_back(numbers in prop::collection::vec((any::<u64>(), 0..64_u32), 0..20), from: u64) {
            let numbers: Vec<u64> = numbers.into_iter().map(|(number, shift)| number >> shift).collect();
            let mut out = Vec::new();
            for number in &numbers {
                put(&mut out, *number);
                put_delta(&mut out, *number, from);
            }
            let mut bytes = Bytes(&out[..]);
            for number in numbers {
                prop_assert_eq!((bytes.number()?, bytes.delta(from)?), (number, number));
            }
            prop_assert!(bytes.ends()?);
        }
    }

    #[test]
    fn a_number_that_is_none_is_refused() {
        let longest = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1];
        assert_eq!(Bytes(&longest[..]).number().unwrap(), u64::MAX);
        for refused in [&[0xff; 9][..], &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2], &[0x80; 11], &[]] {
            assert!(Bytes(refused).number().is_err(), "{refused:?}");
        }
        assert!(Bytes(&[2, 1, 1][..]).bytes(1).is_err());
    }
}
