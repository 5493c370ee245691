//! What a file in doubt becomes, and who is held back.

use super::*;
use crate::config::{BackPressure, LeaderConfig};
use crate::leader::batch::{Instead, control_bytes};
use crate::protocol::framing_bytes;
use crate::types::Secret;
use std::time::{Duration, Instant};

const FILE: FileId = (1, 2);

/// A stream with one file of 8 bytes.
fn with_file() -> (Stream, RelPath) {
    with_file_under(BackPressure::Off)
}

fn with_file_under(back_pressure: BackPressure) -> (Stream, RelPath) {
    let config = LeaderConfig { back_pressure, ..LeaderConfig::new("unused", Secret::new("secret").unwrap()) };
    let stream = Stream::new(&config);
    let path = RelPath::new("f").unwrap();
    stream.replace(&path, Content::OnDisk(8), FILE).unwrap();
    (stream, path)
}

fn len(stream: &Stream, path: &RelPath) -> Option<u64> {
    let version = stream.version(path);
    version.exists().then_some(version.len)
}

fn doubt(stream: &Stream, path: &RelPath) -> Version {
    stream.doubt(path, stream.version(path).generation).unwrap().1
}

#[test]
fn a_file_in_doubt_is_announced_as_it_was_found() {
    for (found, left) in [(None, None), (Some(0), Some(0)), (Some(3), Some(3)), (Some(8), Some(8)), (Some(9), Some(8))]
    {
        let (stream, path) = with_file();
        let doubted = doubt(&stream, &path);
        stream.mend(&path, doubted, found);
        assert_eq!(len(&stream, &path), left, "found {found:?}");
        assert_ne!(stream.version(&path).generation, doubted.generation, "what was sent of it is void");
        stream.mend(&path, doubted, None);
        assert_eq!(len(&stream, &path), left, "whoever else finds out does not do it again");
    }
}

#[test]
fn an_append_of_nothing_is_no_change() {
    let (stream, path) = with_file();
    let before = stream.position();
    assert_eq!(stream.append(&path, 8, Content::Bytes(b"")).unwrap(), Some(before));
    let ordered = stream.ordered.lock();
    assert!(
        ordered.index.last_change() <= ordered.position,
        "who attaches now is not told of it, nor of what the file got before"
    );
}

#[test]
fn a_replacement_goes_by_way_of_another_file_for_1_0_0_only() {
    let (stream, path) = with_file();
    let temporary = RelPath::new("f.tmp").unwrap();
    stream.replace(&temporary, Content::OnDisk(5), FILE).unwrap();
    stream.ordered.lock().queues = 1;
    for content in [Content::Bytes(b"abc"), Content::OnDisk(3)] {
        let before = stream.position();
        stream.replace(&path, content, FILE).unwrap();
        assert_eq!(stream.position().since(before), framing_bytes(&path) + 3);
        let sealed = std::mem::take(&mut stream.ordered.lock().sealed);
        let [batch] = &sealed[..] else { panic!("{sealed:?}") };
        let Some(Instead::Steps(steps)) = &batch.instead else { panic!("{batch:?}") };
        let [Step::Delete(first), Step::Send(replace), Step::Send(back)] = &steps[..] else { panic!("{steps:?}") };
        assert_eq!([first, &replace.path, &back.path], [&temporary, &path, &temporary]);
    }
}

#[test]
fn what_is_left_of_a_file_is_announced_under_pressure_and_after_the_end() {
    const LONG: Duration = Duration::from_secs(3600);
    for pressure in [BackPressure::Wait(LONG), BackPressure::WouldBlock(LONG)] {
        let (stream, path) = with_file_under(pressure);
        let doubted = doubt(&stream, &path);
        stream.pressure.begin();
        std::thread::scope(|scope| {
            let mending = scope.spawn(|| stream.mend(&path, doubted, Some(3)));
            let deadline = Instant::now() + Duration::from_secs(60);
            while !mending.is_finished() && Instant::now() < deadline {
                std::thread::yield_now();
            }
            let waits = !mending.is_finished();
            stream.pressure.end();
            assert!(!waits, "a follower's writer waits for its own queue");
        });
        assert_eq!(len(&stream, &path), Some(3), "{pressure:?}");
    }
    for durable in [false, true] {
        let (stream, path) = with_file();
        let doubted = doubt(&stream, &path);
        let end = stream.close(durable);
        stream.mend(&path, doubted, None);
        let mended = stream.position().since(end);
        assert_eq!(len(&stream, &path), None);
        let asks = control_bytes(&Control::MakeDurable);
        assert_eq!(mended, framing_bytes(&path) + if durable { asks } else { 0 });
        assert!(stream.replace(&path, Content::OnDisk(5), FILE).is_err());
    }
}

#[test]
fn who_must_not_be_held_back_is_refused_for_now() {
    let (stream, path) = with_file_under(BackPressure::Wait(Duration::from_secs(3600)));
    stream.pressure.begin();
    let refused = stream.replace_at_once(&path, Content::OnDisk(9), FILE);
    assert!(matches!(refused, Err(AppendError::WouldBlock)) && len(&stream, &path) != Some(9));
    assert!(matches!(stream.delete_kept(&path), Err(AppendError::WouldBlock)));
    stream.pressure.end();
    assert!(stream.replace_at_once(&path, Content::OnDisk(9), FILE).is_ok());
    assert_eq!(len(&stream, &path), Some(9));
}

#[test]
fn what_followers_kept_and_is_gone_is_not_taken_for_deleted_there_while_nothing_may_be_announced() {
    let (stream, path) = with_file_under(BackPressure::WouldBlock(Duration::from_secs(3600)));
    stream.delete(&path).unwrap();
    let before = stream.position();
    stream.pressure.begin();
    assert!(stream.delete_kept(&path).is_err() && stream.position() == before);
    stream.pressure.end();
    assert!(stream.delete_kept(&path).is_ok() && stream.position() > before);
}

#[test]
fn what_is_announced_after_the_doubt_holds() {
    let (stream, path) = with_file();
    let other = RelPath::new("g").unwrap();
    for found in [None, Some(3)] {
        let doubted = doubt(&stream, &path);
        let before = stream.version(&path).len;
        stream.append(&path, before, Content::OnDisk(1)).unwrap().unwrap();
        stream.mend(&path, doubted, found);
        assert_eq!(len(&stream, &path), Some(before + 1), "appended to meanwhile");
    }
    let doubted = doubt(&stream, &path);
    stream.replace(&path, Content::OnDisk(5), FILE).unwrap();
    stream.mend(&path, doubted, None);
    assert_eq!(len(&stream, &path), Some(5), "replaced meanwhile");
    let doubted = doubt(&stream, &path);
    stream.truncate(&path, 4).unwrap();
    stream.mend(&path, doubted, None);
    assert_eq!(len(&stream, &path), Some(4), "truncated meanwhile");
    stream.replace(&path, Content::OnDisk(5), FILE).unwrap();
    let generation = stream.version(&path).generation;
    assert!(stream.rename(&path, &other, Some(FILE)).unwrap().is_some());
    let (found_as, doubted) = stream.doubt(&path, generation).unwrap();
    assert_eq!(found_as, other, "renamed before");
    stream.mend(&found_as, doubted, None);
    assert_eq!((len(&stream, &path), len(&stream, &other)), (None, None));
    assert_eq!(stream.doubt(&path, generation), None, "gone for good");
}

#[test]
fn a_doubt_lasts_until_the_file_is_announced_anew() {
    let (stream, path) = with_file();
    let other = RelPath::new("g").unwrap();
    assert!(stream.only_read_from(&path, FILE) && !stream.only_read_from(&path, (1, 3)));
    let doubted = doubt(&stream, &path);
    assert!(!stream.only_read_from(&path, FILE));
    assert_eq!(stream.rename(&path, &other, Some(FILE)).unwrap(), None, "what followers have is not moved");
    stream.mend(&path, doubted, Some(8));
    assert!(!stream.only_read_from(&path, FILE), "found, but perhaps for a moment only");
    stream.truncate(&path, 7).unwrap();
    stream.append(&path, 7, Content::OnDisk(1)).unwrap().unwrap();
    assert!(!stream.only_read_from(&path, FILE));
    stream.replace(&path, Content::OnDisk(8), FILE).unwrap();
    assert!(stream.only_read_from(&path, FILE));
    doubt(&stream, &path);
    stream.delete(&path).unwrap();
    assert_eq!(stream.append(&path, 0, Content::OnDisk(1)).unwrap(), None);
    stream.create(&path, Content::OnDisk(1), Some(FILE), false).unwrap();
    assert!(stream.only_read_from(&path, FILE));
}
