//! Digests of bytes as they come.

use sha1::{Digest, Sha1};

use crate::protocol::extension::{CHUNK, ChunkDigest};

/// Files of no more than that are digested on the way when they are moved: to open them again would cost more. For each byte it costs as much again as sending
/// it does, which a first sync of large files is spared: the digesters take those after it, at their pace.
pub(crate) const ON_THE_WAY_BYTES_MAX: u64 = 64 << 10;

/// A file's content from its beginning on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Chunked {
    bytes: u64,
    /// Of the chunks that are whole, and were not taken.
    whole: Vec<ChunkDigest>,
    /// Of the bytes behind them.
    sum: Sha1,
    in_chunk: usize,
}

impl Chunked {
    /// The next bytes.
    pub(crate) fn update(&mut self, mut bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(CHUNK - self.in_chunk));
            self.sum.update(now);
            self.in_chunk += now.len();
            if self.in_chunk == CHUNK {
                self.whole.push(std::mem::take(&mut self.sum).finalize().into());
                self.in_chunk = 0;
            }
            bytes = later;
        }
    }

    /// How many bytes have come.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Moves what is known of the chunks that were not taken behind `digests`; and of the last bytes, which are less than one: that is known as well,
    /// but not taken.
    pub(crate) fn take(&mut self, digests: &mut Vec<ChunkDigest>) {
        let last = (self.in_chunk > 0).then(|| self.sum.clone().finalize().into());
        let more = self.whole.len() + usize::from(last.is_some());
        // Most files are of one chunk, and there are many.
        if digests.is_empty() {
            digests.reserve_exact(more);
        }
        digests.extend(self.whole.drain(..).chain(last));
    }

    /// How many bytes are in chunks that were taken.
    pub(crate) fn taken(&self) -> u64 {
        self.bytes - self.in_chunk as u64 - (self.whole.len() * CHUNK) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn pieces_of_any_size_have_the_digests_of_the_whole(pieces in prop::collection::vec((0..600_000_usize, any::<bool>()), 0..6)) {
            let (mut content, mut chunked, mut digests) = (Vec::new(), Chunked::default(), Vec::new());
            for (len, takes) in pieces {
                let piece: Vec<u8> = (0..len).map(|at| u8::try_from((content.len() + at) % 251).unwrap()).collect();
                content.extend_from_slice(&piece);
                chunked.update(&piece);
                if takes {
                    digests.truncate(usize::try_from(chunked.taken()).unwrap() / CHUNK);
                    chunked.take(&mut digests);
                    let expected: Vec<ChunkDigest> = content.chunks(CHUNK).map(|chunk| Sha1::digest(chunk).into()).collect();
                    prop_assert_eq!(&digests, &expected);
                    prop_assert_eq!(chunked.taken(), (content.len() / CHUNK * CHUNK) as u64);
                }
                prop_assert_eq!(chunked.bytes(), content.len() as u64);
            }
        }
    }
}
