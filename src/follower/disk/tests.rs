use super::*;
use crate::datadir::DataDir;
use crate::follower::contact::{Limit, Standing};
use crate::follower::kept::Bounds;
use crate::follower::session::{Parts, Session};
use crate::follower::track::Track;
use crate::protocol::FrameWriter;
use crate::protocol::extension::{CHUNK_BYTES, Control};
use std::fs;
use std::io::Write;

fn worker(root: &std::path::Path) -> Worker {
    Worker {
        jobs: Arc::default(),
        dir: Arc::new(Dir::open(root).unwrap()),
        digests: Arc::default(),
        report: Arc::default(),
        shared: Arc::default(),
        chunks_max: 2,
    }
}

fn framed(controls: &[Control]) -> Vec<u8> {
    let mut wire = Vec::new();
    controls.iter().for_each(|control| control.encode(&mut wire));
    let mut blocks = FrameWriter::new(crate::protocol::FRAME_HEADER.to_vec());
    blocks.write_all(&wire).and_then(|()| blocks.flush()).unwrap();
    blocks.get_mut().clone()
}

/// Has a session tell everything, show what it found, and apply `controls` in a sync, where the leader has this standing.
fn sync(
    worker: &Worker,
    data: &mut DataDir,
    standing: Standing,
    controls: &[Control],
    show: impl FnOnce(&Told),
) -> Result<(), Error> {
    let asks = framed(&[Control::Want(1), Control::Tell(vec![0]), Control::Tell(vec![1]), Control::TellEnds]);
    let mut all = vec![Control::SyncBegins { files: 0, bytes: 0 }];
    all.extend_from_slice(controls);
    all.extend([Control::SyncEnds, Control::Position(0)]);
    let (dir, digests) = (worker.dir.clone(), worker.digests.clone());
    let (shared, report, jobs) = (worker.shared.clone(), worker.report.clone(), worker.jobs.clone());
    std::thread::scope(|scope| {
        scope.spawn(|| worker.run());
        let parts = Parts {
            data,
            limit: Limit { standing, max_delete: 0.9 },
            theirs: None,
            term: None,
            once: true,
            keep: Bounds { age: std::time::Duration::ZERO, bytes: 0 },
            digests: &digests,
            shared: &shared,
            report: &report,
            jobs: &jobs,
        };
        let mut session = Session::new(parts, &dir, Track::new(digests.clone(), Unflushed::default()));
        let closed = session.run(&mut crate::protocol::frame_reader(&asks[..]));
        assert!(matches!(closed, Err(Error::Connection { .. })), "{closed:?}");
        while report.message().expect("it ended") != Message::InventoryEnd {}
        show(jobs.state.lock().told.as_ref().unwrap());
        let done = session.run(&mut crate::protocol::frame_reader(&framed(&all)[..]));
        jobs.close();
        done
    })
}

#[test]
fn a_guest_who_would_rename_a_file_away_finds_the_directory_nobodys_the_next_time_too() {
    let root = tempfile::tempdir().unwrap();
    let mut data = DataDir::open_unclaimed(root.path(), None, None).unwrap();
    fs::write(root.path().join("mine"), "mine").unwrap();
    let worker = worker(root.path());
    let path = |name| RelPath::new(name).unwrap();
    let rename = Control::Rename { from: path("mine"), to: path("theirs") };
    let refused = sync(&worker, &mut data, Standing::Guest, &[rename], |_| {});
    assert!(matches!(refused, Err(Error::ForeignDirectory { .. })), "{refused:?}");
    assert!(!data.is_claimed() && !crate::own_folder::is_incomplete(root.path()), "it is claimed, or marked");
    assert_eq!(fs::read(root.path().join("mine")).unwrap(), b"mine");
}

#[test]
fn a_file_that_was_told_in_part_is_cut_there_before_the_leader_adds_to_it() {
    let root = tempfile::tempdir().unwrap();
    let mut data = DataDir::open(root.path(), None).unwrap();
    fs::write(root.path().join("long"), vec![7; 3 << 18]).unwrap();
    fs::write(root.path().join("short"), "x").unwrap();
    let worker = worker(root.path());
    sync(&worker, &mut data, Standing::Guest, &[], |told| {
        assert_eq!((told.names.len(), told.files), (2, 2));
        assert_eq!(told.cut, [(RelPath::new("long").unwrap(), 2 * CHUNK_BYTES)]);
    })
    .unwrap();
    assert_eq!(fs::metadata(root.path().join("long")).unwrap().len(), 2 * CHUNK_BYTES);
    assert_eq!(fs::read(root.path().join("short")).unwrap(), b"x");
}

#[test]
fn flushes_that_wait_become_one_and_what_a_thread_leaves_is_kept() {
    let root = tempfile::tempdir().unwrap();
    let worker = worker(root.path());
    let jobs = &worker.jobs;
    let at = |position| Some(EpochPosition { epoch: 1, position: crate::StreamPosition(position) });
    jobs.put(Job::Flush(Unflushed::default(), 10, at(1)));
    jobs.put(Job::Flush(Unflushed::all(), 20, at(2)));
    jobs.put(Job::Flush(Unflushed::default(), 0, None));
    let last = at(2);
    assert!(matches!(&jobs.state.lock().jobs.make_contiguous()[..], [Job::Flush(_, 20, it)] if *it == last));
    jobs.close();
    worker.run();
    let (answer, answered) = crossbeam_channel::bounded(1);
    jobs.put(Job::Mark(answer));
    assert!(answered.recv().is_err(), "somebody waits for a thread that has ended");
    assert!(format!("{:?}", jobs.left()).contains("all: true"));
}
