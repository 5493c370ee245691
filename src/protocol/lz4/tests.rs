use super::*;
use proptest::prelude::*;

fn noise(length: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(7);
    std::iter::repeat_with(|| random.u8(..)).take(length).collect()
}

proptest! {
    #[test]
    fn what_is_written_in_any_split_is_read_back(
        lengths in prop::collection::vec(prop_oneof![0_usize..100_000, 0_usize..600_000], 1..8),
        compressible in any::<bool>(),
    ) {
        let total: usize = lengths.iter().sum();
        let bytes = if compressible { vec![b'x'; total] } else { noise(total) };
        let mut writer = FrameWriter::new(FRAME_HEADER.to_vec());
        let mut rest = &bytes[..];
        for length in lengths {
            let (piece, after) = rest.split_at(length);
            writer.write_all(piece).unwrap();
            writer.flush().unwrap();
            rest = after;
        }
        let wire = std::mem::take(writer.get_mut());
        let mut read = vec![0; total];
        frame_reader(&wire[..]).read_exact(&mut read).unwrap();
        prop_assert!(read == bytes);
    }
}

#[test]
fn noise_grows_by_no_more_than_block_headers() {
    let bytes = noise(10 * BLOCK_BYTES_MAX + 1);
    let wire = BlockEncoder::new().encode(&bytes);
    assert_eq!(wire.len(), bytes.len() + 11 * 4);
}

#[test]
fn after_a_block_that_did_not_shrink_some_go_raw_and_then_it_is_tried_again() {
    let text = [b'x'; BLOCK_BYTES_MAX];
    let mut encoder = BlockEncoder::new();
    assert!(encoder.encode(&text).len() < 1000);
    for _twice in 0..2 {
        assert_eq!(encoder.encode(&noise(TELLING_BYTES_MIN)).len(), TELLING_BYTES_MIN + 4);
        for _ in 0..RAW_RUN_BLOCKS {
            assert_eq!(encoder.encode(&text).len(), text.len() + 4);
        }
        assert!(encoder.encode(&text).len() < 1000);
    }
    assert_eq!(encoder.encode(&noise(TELLING_BYTES_MIN - 1)).len(), TELLING_BYTES_MIN + 3);
    assert!(encoder.encode(&text).len() < 1000, "a short one does not tell");
}

#[test]
fn empty_blocks_are_passed_over_wherever_they_stand() {
    let bytes = noise(3 * BLOCK_BYTES_MAX + 17);
    let mut writer = FrameWriter::new(FRAME_HEADER.to_vec());
    for piece in bytes.chunks(BLOCK_BYTES_MAX / 2 + 1) {
        writer.get_mut().extend_from_slice(&EMPTY_BLOCK.repeat(2));
        writer.write_all(piece).unwrap();
        writer.flush().unwrap();
    }
    writer.get_mut().extend_from_slice(&EMPTY_BLOCK);
    /// A byte at a time.
    struct Trickle<'a>(&'a [u8]);
    impl Read for Trickle<'_> {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            let most = out.len().min(1);
            self.0.read(&mut out[..most])
        }
    }
    let mut read = Vec::new();
    frame_reader(&writer.get_mut()[..]).read_to_end(&mut read).unwrap();
    assert!(read == bytes);
    read.clear();
    frame_reader(Trickle(writer.get_mut())).read_to_end(&mut read).unwrap();
    assert!(read == bytes, "torn at every byte");
}

#[test]
fn small_writes_are_gathered_into_full_blocks_and_large_ones_go_after_them() {
    let bytes = noise(BLOCK_BYTES_MAX * 4);
    let mut writer = FrameWriter::new(FRAME_HEADER.to_vec());
    writer.flush().unwrap();
    assert_eq!(writer.get_mut().len(), FRAME_HEADER.len(), "an empty block would end the frame");
    let small = BLOCK_BYTES_MAX - 10;
    writer.write_all(&bytes[..small]).unwrap();
    assert_eq!(writer.get_mut().len(), FRAME_HEADER.len());
    writer.write_all(&bytes[small..small + 30]).unwrap();
    assert_eq!(writer.get_mut().len(), FRAME_HEADER.len() + 4 + BLOCK_BYTES_MAX);
    assert_eq!(writer.encoder().raw_run, RAW_RUN_BLOCKS);
    writer.write_all(&bytes[small + 30..]).unwrap();
    assert_eq!(writer.get_mut().len(), FRAME_HEADER.len() + 3 * 4 + bytes.len());
    let mut read = vec![0; bytes.len()];
    frame_reader(&writer.get_mut()[..]).read_exact(&mut read).unwrap();
    assert!(read == bytes);
}

/// Is interrupted, takes so many bytes at first, all of any later write, and then fails if it `fails`.
struct Reluctant {
    at_first: Option<usize>,
    interrupted: bool,
    fails: bool,
    taken: Vec<u8>,
}

impl Write for Reluctant {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, bytes: &[IoSlice<'_>]) -> io::Result<usize> {
        if !std::mem::replace(&mut self.interrupted, true) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        if self.fails {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let bytes: Vec<u8> = bytes.iter().flat_map(|slice| slice.iter().copied()).collect();
        let most = self.at_first.take().unwrap_or(bytes.len());
        self.taken.extend_from_slice(&bytes[..most]);
        Ok(most)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn two_pieces_are_written_whole_however_much_is_taken_at_first() {
    for at_first in 1..=5 {
        let mut to = Reluctant { at_first: Some(at_first), interrupted: false, fails: false, taken: Vec::new() };
        write_both(&mut to, b"abc", b"de").unwrap();
        assert_eq!(to.taken, b"abcde", "{at_first} at first");
    }
    let mut broken = Reluctant { at_first: None, interrupted: false, fails: true, taken: Vec::new() };
    assert_eq!(write_both(&mut broken, b"abc", b"de").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
}
