//! The model does what a disk does, and loses what a disk may lose.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use ::rustix::fs::{AtFlags, FallocateFlags, Mode, OFlags, RenameFlags, ResolveFlags, SeekFrom};
use ::rustix::io::Errno;

use super::super::fs::{self, File, FileExt, MetadataExt};
use super::super::rustix::fs as rx;
use super::super::world::{self, Fault, Outcome, Policy, Settings, What};
use super::super::{rustix, thread};
use super::{Disk, DiskSettings, Entry, NamesAtPowerCut, WatchLimits};

fn run(seed: u64, body: impl FnOnce() + Send + 'static) -> Outcome {
    let settings = Settings { seed, policy: Policy::Random { change: 0.3 }, stalls: 0.0, trace: false };
    world::run(settings, body)
}

fn fine(seed: u64, body: impl FnOnce() + Send + 'static) {
    let outcome = run(seed, body);
    assert!(outcome.failure.is_none(), "seed {seed}: {:?}", outcome.failure);
}

/// What a world says at its end.
fn told<T: Send + 'static>(seed: u64, body: impl FnOnce() -> T + Send + 'static) -> T {
    let (tell, told) = mpsc::channel();
    fine(seed, move || tell.send(body()).unwrap());
    told.recv().unwrap()
}

fn disk_at(path: &str) -> Disk {
    let disk = super::add(DiskSettings::default());
    super::mount(disk, path);
    disk
}

fn kind<T: std::fmt::Debug>(result: io::Result<T>) -> io::ErrorKind {
    result.unwrap_err().kind()
}

fn file(path: &str) -> Option<Vec<u8>> {
    super::content(path)
}

#[test]
fn what_was_synced_is_there_after_any_power_cut() {
    for seed in 0..1000 {
        fine(seed, || {
            let disk = disk_at("/data");
            fs::create_dir("/data/wal").unwrap();
            let mut log = File::create("/data/wal/1").unwrap();
            log.write_all(&[1; 3000]).unwrap();
            log.sync_data().unwrap();
            File::open("/data/wal").unwrap().sync_all().unwrap();
            File::open("/data").unwrap().sync_all().unwrap();
            log.write_all(&[2; 3000]).unwrap();
            fs::write("/data/wal/2", b"never synced").unwrap();
            super::power_cut(disk);
            let left = file("/data/wal/1").unwrap();
            assert!(left.len() >= 3000 && left[..3000] == [1; 3000]);
        });
    }
}

#[test]
fn what_was_not_synced_is_lost_in_every_way_there_is() {
    let mut seen = BTreeSet::new();
    for seed in 0..400 {
        seen.insert(told(seed, || {
            let disk = disk_at("/data");
            let mut log = File::create("/data/log").unwrap();
            super::sync_all(disk);
            log.write_all(&[7; 2048]).unwrap();
            super::power_cut(disk);
            match file("/data/log") {
                None => "no file",
                Some(left) if left.is_empty() => "nothing",
                Some(left) if left == [7; 2048] => "all",
                Some(left) if left.len() == 2048 && left.iter().all(|byte| *byte == 0) => "a length without its bytes",
                Some(left) if left.len() == 2048 => "some sectors",
                Some(left) if left.iter().all(|byte| *byte == 7) && left.len() % 512 == 0 => "torn",
                Some(_) => "other",
            }
        }));
    }
    let expected = ["a length without its bytes", "all", "nothing", "some sectors", "torn"];
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), expected);
}

#[test]
fn bytes_may_be_there_without_their_time_and_a_time_without_its_bytes() {
    let mut seen = BTreeSet::new();
    for seed in 0..200 {
        seen.insert(told(seed, || {
            let disk = disk_at("/data");
            let log = File::create("/data/log").unwrap();
            log.write_all_at(b"old", 0).unwrap();
            super::sync_all(disk);
            let before = fs::metadata("/data/log").unwrap().modified().unwrap();
            thread::sleep(Duration::from_secs(1));
            log.write_all_at(b"new", 0).unwrap();
            super::power_cut(disk);
            let moved = fs::metadata("/data/log").unwrap().modified().unwrap() != before;
            (file("/data/log").unwrap() == b"new", moved)
        }));
    }
    assert_eq!(seen.len(), 4);
}

#[test]
fn fdatasync_keeps_the_bytes_but_not_the_time() {
    let mut times = BTreeSet::new();
    for seed in 0..100 {
        let (content, moved) = told(seed, || {
            let disk = disk_at("/data");
            let log = File::create("/data/log").unwrap();
            super::sync_all(disk);
            let before = fs::metadata("/data/log").unwrap().modified().unwrap();
            thread::sleep(Duration::from_secs(1));
            log.write_all_at(b"new", 0).unwrap();
            log.sync_data().unwrap();
            super::power_cut(disk);
            (file("/data/log").unwrap(), fs::metadata("/data/log").unwrap().modified().unwrap() != before)
        });
        assert_eq!(content, b"new");
        times.insert(moved);
    }
    assert_eq!(times.len(), 2);
}

#[test]
fn a_mode_and_a_time_that_were_set_may_be_lost_unless_they_were_synced() {
    use rx::{Timespec, Timestamps, UTIME_OMIT};
    let set = |path: &str| {
        let file = File::open(path).unwrap();
        rx::fchmod(&file, Mode::from_raw_mode(0o640)).unwrap();
        let omitted = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
        let last_modification = Timespec { tv_sec: 5, tv_nsec: 7 };
        rx::futimens(&file, &Timestamps { last_access: omitted, last_modification }).unwrap();
        file
    };
    let looks = |path: &str| {
        let meta = fs::metadata(path).unwrap();
        (meta.mode() & 0o7777 == 0o640, (meta.mtime(), meta.mtime_nsec()) == (5, 7))
    };
    let mut seen = BTreeSet::new();
    for seed in 0..200 {
        seen.extend(told(seed, move || {
            let disk = disk_at("/data");
            fs::create_dir("/data/folder").unwrap();
            for name in ["/data/synced", "/data/lost"] {
                fs::write(name, b"x").unwrap();
            }
            super::sync_all(disk);
            ["/data/folder", "/data/synced"].map(|name| set(name).sync_all().unwrap());
            set("/data/lost").sync_data().unwrap();
            assert_eq!(["/data/folder", "/data/synced", "/data/lost"].map(looks), [(true, true); 3]);
            super::power_cut(disk);
            assert_eq!(["/data/folder", "/data/synced"].map(looks), [(true, true); 2], "seed {seed}");
            [looks("/data/lost")]
        }));
    }
    assert_eq!(seen.len(), 4);
}

#[test]
fn what_was_cut_off_never_comes_back_behind_new_bytes() {
    let mut seen = BTreeSet::new();
    for seed in 0..500 {
        let left = told(seed, || {
            let disk = disk_at("/data");
            let log = File::create("/data/log").unwrap();
            log.write_all_at(&[1; 2048], 0).unwrap();
            super::sync_all(disk);
            log.set_len(0).unwrap();
            log.write_all_at(&[2; 1024], 0).unwrap();
            super::power_cut(disk);
            file("/data/log").unwrap()
        });
        let (old, new) = (left.contains(&1), left.contains(&2));
        assert!(!(old && new), "seed {seed}");
        seen.insert((old, new));
    }
    assert_eq!(seen.len(), 3);
}

#[test]
fn a_rename_is_whole_or_not_at_all() {
    let mut seen = BTreeSet::new();
    for seed in 0..1000 {
        seen.insert(told(seed, || {
            let disk = disk_at("/data");
            fs::create_dir_all("/data/a").unwrap();
            fs::create_dir_all("/data/b").unwrap();
            fs::write("/data/a/x", b"new").unwrap();
            fs::write("/data/b/x", b"old").unwrap();
            super::sync_all(disk);
            fs::rename("/data/a/x", "/data/b/x").unwrap();
            fs::rename("/data/b/x", "/data/b/y").unwrap();
            super::power_cut(disk);
            let at = |path: &str| file(path).map(|bytes| String::from_utf8(bytes).unwrap());
            (at("/data/a/x"), at("/data/b/x"), at("/data/b/y"))
        }));
    }
    let some = |text: &str| Some(text.to_owned());
    let expected = [(None, None, some("new")), (None, some("new"), None), (some("new"), some("old"), None)];
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), expected);
}

#[test]
fn names_of_different_files_may_be_lost_in_any_order_unless_the_disk_has_a_journal() {
    let left = |seed, names| {
        told(seed, move || {
            let disk = super::add(DiskSettings { names, ..DiskSettings::default() });
            super::mount(disk, "/data");
            fs::write("/data/first", b"").unwrap();
            fs::write("/data/second", b"").unwrap();
            super::power_cut(disk);
            super::tree("/data").into_keys().map(|path| path.to_str().unwrap().to_owned()).collect::<Vec<_>>()
        })
    };
    let any: BTreeSet<_> = (0..200).map(|seed| left(seed, NamesAtPowerCut::Any)).collect();
    let prefix: BTreeSet<_> = (0..200).map(|seed| left(seed, NamesAtPowerCut::Prefix)).collect();
    assert_eq!(any.len(), 4);
    assert!(prefix.len() == 3 && !prefix.contains(&vec!["second".to_owned()]));
}

#[test]
fn a_rename_that_is_synced_brings_what_it_needs() {
    for seed in 0..300 {
        fine(seed, || {
            let disk = disk_at("/data");
            fs::create_dir("/data/a").unwrap();
            super::sync_all(disk);
            let mut file = File::create("/data/a/tmp").unwrap();
            file.write_all(b"x").unwrap();
            file.sync_all().unwrap();
            fs::rename("/data/a/tmp", "/data/a/tmp2").unwrap();
            fs::rename("/data/a/tmp2", "/data/name").unwrap();
            File::open("/data").unwrap().sync_all().unwrap();
            super::power_cut(disk);
            assert_eq!(super::tree("/data").len(), 2);
            assert_eq!(super::content("/data/name").unwrap(), b"x");
        });
    }
}

#[test]
fn a_sync_that_failed_loses_what_was_dirty_though_the_next_succeeds() {
    let mut kept = BTreeSet::new();
    for seed in 0..200 {
        kept.insert(told(seed, || {
            let disk = disk_at("/data");
            let log = File::create("/data/log").unwrap();
            super::sync_all(disk);
            log.write_all_at(&[1; 100], 0).unwrap();
            let world = world::current();
            let fault = Fault { call: "fdatasync", errno: 5, probability: 1.0, left: 1 };
            world.set_faults(world.process(), vec![fault]);
            assert_eq!(log.sync_data().unwrap_err().raw_os_error(), Some(5));
            log.sync_data().unwrap();
            log.write_all_at(&[2; 100], 8192).unwrap();
            log.sync_data().unwrap();
            super::power_cut(disk);
            let left = file("/data/log").unwrap();
            assert!(left.len() == 8292 && left[8192..] == [2; 100]);
            left[0] == 1
        }));
    }
    assert_eq!(kept.len(), 2, "lost always, or never");
}

#[test]
fn a_failed_sync_is_told_once_to_each_that_was_open_and_to_one_that_is_opened_later_if_nobody_was() {
    fine(1, || {
        let _disk = disk_at("/data");
        let log = File::create("/data/log").unwrap();
        let sync_all = |top: &File| super::super::rustix::fs::syncfs(top).is_ok();
        let top = || File::open("/data").unwrap();
        let (first, second) = (top(), top());
        log.write_all_at(b"x", 0).unwrap();
        let world = world::current();
        let fail = |call| world.set_faults(world.process(), vec![Fault { call, errno: 5, probability: 1.0, left: 1 }]);
        fail("fdatasync");
        log.sync_data().unwrap_err();
        let later = top();
        assert_eq!([&later, &later, &first, &first].map(sync_all), [false, true, false, true]);
        assert_eq!([&top(), &second, &second].map(sync_all), [true, false, true]);
        let others = [File::open("/data/log").unwrap(), File::open("/data/log").unwrap()];
        log.write_all_at(b"y", 0).unwrap();
        fail("syncfs");
        assert_eq!([&first, &first].map(sync_all), [false, true]);
        assert_eq!([&top(), &second, &second].map(sync_all), [true, false, true]);
        // And of the file, where pages of it were lost.
        let clean = File::create("/data/clean").unwrap();
        let sync = |file: &File| file.sync_data().is_ok();
        assert_eq!([&log, &log, &others[0], &others[0], &clean].map(sync), [false, true, false, true, true]);
        assert_eq!([&File::open("/data/log").unwrap(), &others[1]].map(sync), [true, false]);
    });
}

#[test]
fn a_page_that_is_written_again_after_a_failed_sync_is_synced_whole() {
    for seed in 0..100 {
        fine(seed, || {
            let disk = disk_at("/data");
            let log = File::create("/data/log").unwrap();
            super::sync_all(disk);
            log.write_all_at(&[1; 100], 0).unwrap();
            let world = world::current();
            let fault = Fault { call: "fdatasync", errno: 5, probability: 1.0, left: 1 };
            world.set_faults(world.process(), vec![fault]);
            log.sync_data().unwrap_err();
            log.write_all_at(&[2; 100], 100).unwrap();
            log.sync_data().unwrap();
            super::power_cut(disk);
            assert_eq!(file("/data/log").unwrap(), [[1; 100], [2; 100]].concat());
        });
    }
}

#[test]
fn what_is_written_during_a_sync_is_none_of_its() {
    let mut lost = 0;
    for seed in 0..200 {
        lost += usize::from(told(seed, || {
            let disk = disk_at("/data");
            super::settings(disk, |settings| settings.sync_time = Duration::from_millis(1)..Duration::from_millis(2));
            let log = std::sync::Arc::new(File::create("/data/log").unwrap());
            super::sync_all(disk);
            let syncing = log.clone();
            let syncer = thread::spawn(move || syncing.sync_data().unwrap());
            log.write_all_at(b"x", 0).unwrap();
            syncer.join().unwrap();
            super::power_cut(disk);
            file("/data/log").unwrap().is_empty()
        }));
    }
    assert!(lost > 10);
}

#[test]
fn a_snapshot_is_put_back_and_stays() {
    fine(1, || {
        let disk = disk_at("/data");
        fs::create_dir("/data/a").unwrap();
        fs::write("/data/a/x", b"then").unwrap();
        let (then, tree) = (super::snapshot(disk), super::tree("/data"));
        fs::write("/data/a/x", b"later").unwrap();
        fs::write("/data/y", b"later").unwrap();
        super::restore(disk, then);
        assert!(super::tree("/data") == tree && super::durable_tree(disk) == tree);
        super::power_cut(disk);
        assert_eq!(super::tree("/data"), tree);
        fs::write("/data/a/z", b"goes on").unwrap();
    });
}

#[test]
fn a_file_that_was_removed_lives_until_its_last_descriptor_goes() {
    fine(2, || {
        disk_at("/data");
        fs::write("/data/x", b"bytes").unwrap();
        let file = File::open("/data/x").unwrap();
        let again = file.try_clone().unwrap();
        let inode = file.metadata().unwrap().ino();
        fs::remove_file("/data/x").unwrap();
        drop(file);
        let mut text = String::new();
        (&again).read_to_string(&mut text).unwrap();
        assert!(text == "bytes" && again.metadata().unwrap().nlink() == 0);
        fs::write("/data/y", b"").unwrap();
        assert_ne!(fs::metadata("/data/y").unwrap().ino(), inode);
        drop(again);
        fs::write("/data/z", b"").unwrap();
        assert_eq!(fs::metadata("/data/z").unwrap().ino(), inode, "numbers are given again");
    });
}

#[test]
fn descriptors_run_out_and_come_back_with_the_process_that_had_them() {
    fine(3, || {
        disk_at("/data");
        fs::write("/data/x", b"").unwrap();
        let world = world::current();
        super::set_descriptors_max(world.process(), 5);
        let (first, second) = (File::open("/data/x").unwrap(), File::open("/data/x").unwrap());
        assert_eq!(File::open("/data/x").unwrap_err().raw_os_error(), Some(24));
        assert_eq!(first.try_clone().unwrap_err().raw_os_error(), Some(24));
        drop(first);
        let third = File::open("/data/x").unwrap();
        second.try_lock().unwrap();
        assert!(matches!(third.try_lock(), Err(fs::TryLockError::WouldBlock)));
        drop(second);
        third.try_lock().unwrap();
        drop(third);
        let other = world.new_process("other");
        world.start_process(other, || {
            let file = File::open("/data/x").unwrap();
            file.try_lock().unwrap();
            thread::park();
        });
        thread::sleep(Duration::from_secs(1));
        let file = File::open("/data/x").unwrap();
        assert!(file.try_lock().is_err());
        world.kill(other);
        file.try_lock().unwrap();
    });
}

#[test]
fn a_full_disk_takes_what_fits() {
    fine(4, || {
        let disk = super::add(DiskSettings { capacity_bytes: 3 * 4096, ..DiskSettings::default() });
        super::mount(disk, "/data");
        let file = File::create("/data/x").unwrap();
        file.write_all_at(&[1; 5000], 0).unwrap();
        assert_eq!(file.write_at(&[1; 9000], 5000).unwrap(), 3 * 4096 - 5000);
        assert_eq!(kind(file.write_at(&[1], 3 * 4096)), io::ErrorKind::StorageFull);
        file.write_all_at(&[2; 3 * 4096], 0).unwrap();
        assert_eq!(rx::statvfs("/data/x").unwrap().f_bavail, 0);
        assert_eq!(rx::fallocate(&file, FallocateFlags::empty(), 0, 4 * 4096), Err(Errno::NOSPC));
        file.set_len(4096).unwrap();
        assert_eq!(rx::statvfs("/data").unwrap().f_bavail, 2);
        rx::fallocate(&file, FallocateFlags::empty(), 0, 3 * 4096).unwrap();
        assert!(file.metadata().unwrap().len() == 3 * 4096 && rx::statvfs("/data").unwrap().f_bavail == 0);
    });
}

#[test]
fn nothing_leads_out_of_a_folder_that_is_to_hold_all() {
    fine(5, || {
        disk_at("/data");
        disk_at("/data/top/mounted");
        fs::write("/data/outside", b"").unwrap();
        fs::write("/data/top/inside", b"").unwrap();
        fs::symlink("../outside", "/data/top/link").unwrap();
        fs::symlink("inside", "/data/top/harmless").unwrap();
        let top = rx::open("/data/top", OFlags::DIRECTORY, Mode::empty()).unwrap();
        let open = |path: &str, resolve| rx::openat2(&top, path, OFlags::RDONLY, Mode::empty(), resolve).map(drop);
        let beneath = ResolveFlags::BENEATH;
        assert_eq!(open("inside", beneath), Ok(()));
        assert_eq!(open("mounted/../inside", beneath), Ok(()));
        assert_eq!(open("../outside", beneath), Err(Errno::XDEV));
        assert_eq!(open("mounted/../../outside", beneath), Err(Errno::XDEV));
        assert_eq!(open("/data/top/inside", beneath), Err(Errno::XDEV));
        assert_eq!(open("link", beneath), Err(Errno::XDEV));
        assert_eq!(open("harmless", beneath), Ok(()));
        assert_eq!(open("harmless", beneath | ResolveFlags::NO_SYMLINKS), Err(Errno::LOOP));
        assert_eq!(open("mounted", ResolveFlags::NO_XDEV), Err(Errno::XDEV));
        let flags = OFlags::PATH | OFlags::NOFOLLOW;
        rx::openat2(&top, "harmless", flags, Mode::empty(), beneath | ResolveFlags::NO_SYMLINKS).unwrap();
        assert_eq!(open("../../data/top/inside", ResolveFlags::IN_ROOT), Err(Errno::NOENT));
        assert_eq!(open("/inside", ResolveFlags::IN_ROOT), Ok(()));
    });
}

#[test]
fn file_systems_are_apart_and_told_of() {
    fine(6, || {
        disk_at("/data");
        let other = disk_at("/data/a b");
        fs::write("/data/x", b"").unwrap();
        let table = File::open("/proc/self/mountinfo").unwrap();
        let changed = || {
            let mut fds = [rustix::event::PollFd::new(&table, ::rustix::event::PollFlags::PRI)];
            rustix::event::poll(&mut fds, Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap()
        };
        assert_eq!(changed(), 0);
        assert_eq!(rx::renameat(rx::CWD, "/data/x", rx::CWD, "/data/a b/x"), Err(Errno::XDEV));
        assert_eq!(rx::linkat(rx::CWD, "/data/x", rx::CWD, "/data/a b/x", AtFlags::empty()), Err(Errno::XDEV));
        assert_eq!(rx::unlinkat(rx::CWD, "/data/a b", AtFlags::REMOVEDIR), Err(Errno::BUSY));
        let (above, below) = (rx::stat("/data").unwrap(), rx::stat("/data/a b").unwrap());
        assert!(above.st_dev != below.st_dev && below.st_ino == 2);
        assert_eq!(rx::stat("/data/a b/..").unwrap().st_ino, above.st_ino);
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let line = mounts.lines().find(|line| line.contains(r" /data/a\040b ")).unwrap();
        let device = format!("{}:{}", rx::major(below.st_dev), rx::minor(below.st_dev));
        assert_eq!(line.split(' ').nth(2), Some(&device[..]));
        fs::write("/data/a b/kept", b"1").unwrap();
        let held = File::open("/data/a b/kept").unwrap();
        assert!(super::unmount("/data/a b") && !super::unmount("/data/a b"));
        assert!(changed() == 1 && changed() == 0);
        assert!(fs::read_dir("/data/a b").unwrap().next().is_none());
        assert_eq!(held.metadata().unwrap().len(), 1);
        super::mount(other, "/data/a b");
        assert_eq!(file("/data/a b/kept").unwrap(), b"1");
        assert_eq!(kind(fs::read("/proc/self/status")), io::ErrorKind::NotFound);
    });
}

#[test]
fn a_disk_that_stalls_lets_no_call_through_until_it_goes_on() {
    fine(7, || {
        let disk = disk_at("/data");
        fs::write("/data/x", b"").unwrap();
        let world = world::current();
        super::stall(disk, Some(world.now() + Duration::from_secs(9)));
        world::watch_waits();
        fs::metadata("/data/x").unwrap();
        let waits = world::watched_waits();
        assert!(world.now() >= Duration::from_secs(9) && waits.iter().any(|wait| wait.what == What::Disk));
        super::stall(disk, Some(Duration::MAX));
        let reader = thread::spawn(|| fs::read("/data/x").unwrap());
        thread::sleep(Duration::from_secs(100));
        assert!(!reader.is_finished());
        super::stall(disk, None);
        reader.join().unwrap();
    });
}

#[test]
fn a_disk_that_goes_on_wakes_who_waits_for_it() {
    for seed in 0..200 {
        fine(seed, || {
            let disk = disk_at("/data");
            fs::write("/data/x", b"").unwrap();
            super::stall(disk, Some(Duration::MAX));
            let readers: Vec<_> = (0..3).map(|_| thread::spawn(|| fs::read("/data/x").unwrap())).collect();
            thread::yield_now();
            super::stall(disk, None);
            readers.into_iter().for_each(|reader| drop(reader.join().unwrap()));
        });
    }
}

#[test]
fn with_a_journal_a_synced_folder_brings_all_that_was_done_before() {
    for seed in 0..100 {
        fine(seed, || {
            let disk = disk_at("/data");
            super::settings(disk, |settings| settings.names = NamesAtPowerCut::Prefix);
            fs::create_dir_all("/data/a/b").unwrap();
            fs::write("/data/a/b/x", b"").unwrap();
            File::open("/data/a/b").unwrap().sync_all().unwrap();
            super::power_cut(disk);
            assert!(file("/data/a/b/x").is_some());
        });
    }
}

#[test]
fn a_listing_tells_what_was_there_all_the_time_once_and_in_any_order() {
    let mut orders = BTreeSet::new();
    let mut of_changed = BTreeSet::new();
    for seed in 0..100 {
        let names = told(seed, || {
            disk_at("/data");
            for name in 0..8 {
                fs::write(format!("/data/{name}"), b"").unwrap();
            }
            let mut names = Vec::new();
            for entry in fs::read_dir("/data").unwrap() {
                let name = entry.unwrap().file_name().into_string().unwrap();
                if names.is_empty() {
                    fs::remove_file("/data/7").unwrap();
                    fs::write("/data/new", b"").unwrap();
                }
                names.push(name);
            }
            names
        });
        of_changed.insert((names.contains(&"7".to_owned()), names.contains(&"new".to_owned())));
        let kept: Vec<_> = names.into_iter().filter(|name| name != "7" && name != "new").collect();
        let sorted: BTreeSet<_> = kept.iter().cloned().collect();
        assert!(kept.len() == 7 && sorted.len() == 7);
        orders.insert(kept);
    }
    assert!(orders.len() > 90);
    assert!(of_changed.len() > 2, "{of_changed:?}");
}

#[test]
fn one_who_is_not_root_is_kept_out_by_modes() {
    fine(8, || {
        disk_at("/data");
        rx::mkdirat(rx::CWD, "/data/closed", Mode::empty()).unwrap();
        rx::mkdirat(rx::CWD, "/data/fixed", Mode::RUSR | Mode::XUSR).unwrap();
        rx::openat(rx::CWD, "/data/mute", OFlags::CREATE | OFlags::WRONLY, Mode::WUSR).unwrap();
        assert!(fs::read_dir("/data/closed").is_ok());
        super::set_privileged(world::current().process(), false);
        assert_eq!(kind(fs::read_dir("/data/closed")), io::ErrorKind::PermissionDenied);
        assert_eq!(kind(fs::metadata("/data/closed/x")), io::ErrorKind::PermissionDenied);
        assert_eq!(kind(fs::write("/data/fixed/x", b"")), io::ErrorKind::PermissionDenied);
        assert_eq!(kind(fs::read("/data/mute")), io::ErrorKind::PermissionDenied);
        assert!(fs::metadata("/data/mute").is_ok());
    });
}

#[test]
fn times_are_as_coarse_as_the_clock() {
    fine(9, || {
        let disk = disk_at("/data");
        super::settings(disk, |settings| settings.clock_tick = Duration::from_secs(1));
        let file = File::create("/data/x").unwrap();
        let first = file.metadata().unwrap();
        thread::sleep(Duration::from_millis(100));
        file.write_all_at(b"x", 0).unwrap();
        let second = file.metadata().unwrap();
        assert!((second.mtime(), second.mtime_nsec()) == (first.mtime(), 0));
        thread::sleep(Duration::from_secs(1));
        file.write_all_at(b"x", 0).unwrap();
        let third = file.metadata().unwrap();
        assert!(third.mtime() == first.mtime() + 1 && third.created().unwrap() == first.created().unwrap());
    });
}

type Seen = Vec<(i32, ::rustix::fs::inotify::ReadFlags, Option<String>)>;

fn events(fd: &rustix::fd::OwnedFd) -> Seen {
    let mut buffer = [const { std::mem::MaybeUninit::uninit() }; 4096];
    let mut reader = rx::inotify::Reader::new(fd, &mut buffer);
    let mut events = Vec::new();
    while let Ok(event) = reader.next() {
        let name = event.file_name().map(|name| name.to_str().unwrap().to_owned());
        events.push((event.wd(), event.events(), name));
    }
    events
}

#[test]
fn watchers_hear_what_happens_in_a_folder() {
    use ::rustix::fs::inotify::{CreateFlags, ReadFlags, WatchFlags};
    fine(10, || {
        disk_at("/data");
        fs::create_dir("/data/a").unwrap();
        fs::create_dir("/data/b").unwrap();
        let inotify = rx::inotify::init(CreateFlags::NONBLOCK).unwrap();
        let a = rx::inotify::add_watch(&inotify, "/data/a", WatchFlags::ALL_EVENTS | WatchFlags::ONLYDIR).unwrap();
        let wanted = WatchFlags::DELETE | WatchFlags::DELETE_SELF | WatchFlags::MOVED_TO | WatchFlags::MOVE_SELF;
        let b = rx::inotify::add_watch(&inotify, "/data/b", wanted).unwrap();
        let file = File::create("/data/a/x").unwrap();
        file.write_all_at(b"1", 0).unwrap();
        file.write_all_at(b"2", 1).unwrap();
        fs::rename("/data/a/x", "/data/b/y").unwrap();
        file.write_all_at(b"3", 2).unwrap();
        fs::remove_file("/data/b/y").unwrap();
        fs::rename("/data/b", "/data/c").unwrap();
        fs::remove_dir("/data/c").unwrap();
        let name = |name: &str| Some(name.to_owned());
        let expected: Seen = vec![
            (a, ReadFlags::CREATE, name("x")),
            (a, ReadFlags::MODIFY, name("x")),
            (a, ReadFlags::MOVED_FROM, name("x")),
            (b, ReadFlags::MOVED_TO, name("y")),
            (b, ReadFlags::DELETE, name("y")),
            (b, ReadFlags::MOVE_SELF, None),
            (b, ReadFlags::DELETE_SELF, None),
            (b, ReadFlags::IGNORED, None),
        ];
        assert_eq!(events(&inotify), expected);
        super::set_watch_limits(WatchLimits { queued_max: 2, watches_max: 1 });
        for name in 0..9 {
            fs::write(format!("/data/a/{name}"), b"").unwrap();
        }
        let overflowed = events(&inotify);
        assert!(overflowed.len() == 3 && overflowed[2] == (-1, ReadFlags::QUEUE_OVERFLOW, None));
        assert_eq!(rx::inotify::add_watch(&inotify, "/data", wanted), Err(Errno::NOSPC));
        rx::inotify::remove_watch(&inotify, a).unwrap();
        assert_eq!(events(&inotify), [(a, ReadFlags::IGNORED, None)]);
    });
}

#[test]
fn poll_wakes_for_events_and_for_a_wake_up() {
    use ::rustix::event::{EventfdFlags, PollFlags};
    use ::rustix::fs::inotify::{CreateFlags, WatchFlags};
    use rustix::event::{PollFd, Timespec, eventfd, poll};
    fine(11, || {
        disk_at("/data");
        let inotify = rx::inotify::init(CreateFlags::NONBLOCK).unwrap();
        rx::inotify::add_watch(&inotify, "/data", WatchFlags::CREATE).unwrap();
        let wake = std::sync::Arc::new(eventfd(0, EventfdFlags::NONBLOCK).unwrap());
        let look = |timeout: Option<&Timespec>| {
            let mut fds = [PollFd::new(&inotify, PollFlags::IN), PollFd::new(&wake, PollFlags::IN)];
            poll(&mut fds, timeout).unwrap();
            fds.map(|fd| !fd.revents().is_empty())
        };
        assert_eq!(look(Some(&Timespec { tv_sec: 3, tv_nsec: 0 })), [false, false]);
        assert!(world::current().now() >= Duration::from_secs(3));
        let writer = thread::spawn(|| {
            thread::sleep(Duration::from_secs(5));
            fs::write("/data/x", b"").unwrap();
        });
        assert_eq!(look(None), [true, false]);
        writer.join().unwrap();
        events(&inotify);
        let waker = wake.clone();
        let waker = thread::spawn(move || rustix::io::write(&waker, &1u64.to_ne_bytes()).unwrap());
        assert_eq!(look(None), [false, true]);
        waker.join().unwrap();
        assert_eq!(rustix::io::read(&wake, &mut [0; 8]), Ok(8));
        assert_eq!(look(Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), [false, false]);
    });
}

#[test]
fn holes_are_told() {
    told(0, || {
        disk_at("/data");
        let file = File::create("/data/a").unwrap();
        file.set_len(20_000).unwrap();
        file.write_at(b"data", 9000).unwrap();
        let seek = |to| rx::seek(&file, to);
        assert_eq!([0, 8192, 9000, 12_287].map(|at| seek(SeekFrom::Data(at))), [8192, 8192, 9000, 12_287].map(Ok));
        assert_eq!([12_288, 19_999, 20_000].map(|at| seek(SeekFrom::Data(at))), [Err(Errno::NXIO); 3]);
        assert_eq!([0, 8191, 8192, 19_999].map(|at| seek(SeekFrom::Hole(at))), [0, 8191, 12_288, 19_999].map(Ok));
        file.write_at(&[1; 20_000], 0).unwrap();
        assert_eq!((seek(SeekFrom::Data(5)), seek(SeekFrom::Hole(5))), (Ok(5), Ok(20_000)));
    });
}

#[test]
fn the_same_seed_leaves_the_same() {
    let leaves = |seed| {
        told(seed, || {
            let disk = disk_at("/data");
            let writers: Vec<_> = (0..3)
                .map(|who| {
                    thread::spawn(move || {
                        for file in 0..5 {
                            let name = format!("/data/{}", (who + file) % 4);
                            let mut file = File::options().append(true).create(true).open(name).unwrap();
                            file.write_all(&[who; 700]).unwrap();
                            if who == 1 {
                                file.sync_data().unwrap();
                            }
                        }
                    })
                })
                .collect();
            writers.into_iter().for_each(|writer| writer.join().unwrap());
            super::power_cut(disk);
            super::tree("/data")
        })
    };
    assert!((0..20).all(|seed| leaves(seed) == leaves(seed)));
    assert!((0..20).any(|seed| leaves(seed) != leaves(seed + 20)));
}

/// A call, with names out of a few.
#[derive(Clone, Debug)]
enum Call {
    Write(String, u64, usize, bool),
    Open(String, OFlags),
    OpenBeneath(String, OFlags, ResolveFlags),
    Truncate(String, u64),
    Mkdir(String),
    Unlink(String, bool),
    Rename(String, String, RenameFlags),
    Link(String, String),
    Symlink(String, String),
    Stat(String, bool),
    List(String),
    Holes(String, u64),
    Punch(String, u64, u64),
    Attributes(String, u32, i64),
    ReadLink(String),
}

fn random_path(rng: &mut fastrand::Rng) -> String {
    let names = ["a", "b", "c", "d", "link", "..", ".", "a"];
    let depth = rng.usize(1..4);
    let mut path = (0..depth).map(|_| names[rng.usize(..names.len())]).collect::<Vec<_>>().join("/");
    if rng.u8(..12) == 0 {
        path.push('/');
    }
    // Never out of the folder that stands for all.
    let mut level = 0;
    for part in path.split('/') {
        level += match part {
            ".." => -1,
            "." | "" => 0,
            _ => 1,
        };
        if level < 0 {
            return "a".into();
        }
    }
    path
}

fn random_call(rng: &mut fastrand::Rng) -> Call {
    let path = random_path(rng);
    match rng.u8(..18) {
        0 | 1 => Call::Write(path, rng.u64(..9000), rng.usize(..5000), rng.bool()),
        2 => {
            let all = [OFlags::CREATE, OFlags::EXCL, OFlags::TRUNC, OFlags::NOFOLLOW, OFlags::DIRECTORY, OFlags::PATH];
            let access = [OFlags::RDONLY, OFlags::WRONLY, OFlags::RDWR][rng.usize(..3)];
            let flags = all.iter().filter(|_| rng.u8(..4) == 0).fold(access, |flags, flag| flags | *flag);
            Call::Open(path, flags)
        }
        3 => {
            let resolve = [ResolveFlags::BENEATH, ResolveFlags::NO_SYMLINKS, ResolveFlags::IN_ROOT];
            let resolve = resolve.iter().filter(|_| rng.bool()).fold(ResolveFlags::empty(), |all, flag| all | *flag);
            let flags = [OFlags::PATH, OFlags::RDONLY | OFlags::NOFOLLOW, OFlags::RDONLY, OFlags::DIRECTORY];
            Call::OpenBeneath(path, flags[rng.usize(..4)], resolve)
        }
        4 => Call::Truncate(path, rng.u64(..9000)),
        5 | 6 => Call::Mkdir(path),
        7 => Call::Unlink(path, rng.bool()),
        8 | 9 => {
            let flags = [RenameFlags::empty(), RenameFlags::empty(), RenameFlags::NOREPLACE, RenameFlags::EXCHANGE];
            Call::Rename(path, random_path(rng), flags[rng.usize(..4)])
        }
        10 => Call::Link(path, random_path(rng)),
        11 => Call::Symlink(random_path(rng), path),
        12 => Call::Stat(path, rng.bool()),
        13 => Call::Holes(path, rng.u64(..12000)),
        14 => Call::Punch(path, rng.u64(..9000), rng.u64(..9000)),
        15 => Call::Attributes(path, (0o700 | rng.u32(..0o10000)) & !0o2000, rng.i64(0..2_000_000_000)),
        16 => Call::ReadLink(path),
        _ => Call::List(path),
    }
}

/// Does a call with these functions, and tells what came of it.
macro_rules! perform {
    ($call:expr, $top:expr, $fs:ident, $file:ty, $io:ident) => {{
        let top = $top;
        match $call {
            Call::Write(path, at, length, append) => {
                let append = if *append { OFlags::APPEND } else { OFlags::empty() };
                let flags = OFlags::WRONLY | OFlags::CREATE | append;
                $fs::openat(top, path.as_str(), flags, Mode::from_raw_mode(0o644)).map(|fd| {
                    let file = <$file>::from(fd);
                    let written = file.write_at(&vec![b'x'; *length], *at).map_err(|error| error.raw_os_error());
                    let meta = file.metadata().unwrap();
                    format!("{written:?} {} {}", meta.len(), meta.nlink())
                })
            }
            Call::Open(path, flags) => $fs::openat(top, path.as_str(), *flags, Mode::from_raw_mode(0o644)).map(|fd| {
                let stat = $fs::fstat(&fd).unwrap();
                format!("{:o} {}", stat.st_mode, stat.st_nlink)
            }),
            Call::OpenBeneath(path, flags, resolve) => {
                $fs::openat2(top, path.as_str(), *flags, Mode::empty(), *resolve)
                    .map(|fd| format!("{:o}", $fs::fstat(&fd).unwrap().st_mode))
            }
            Call::Truncate(path, len) => $fs::openat(top, path.as_str(), OFlags::RDWR, Mode::empty())
                .and_then(|fd| $fs::ftruncate(fd, *len))
                .map(|()| String::new()),
            Call::Punch(path, at, len) => $fs::openat(top, path.as_str(), OFlags::RDWR, Mode::empty())
                .and_then(|fd| $fs::fallocate(fd, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, *at, *len))
                .map(|()| String::new()),
            Call::Attributes(path, mode, seconds) => $fs::openat(top, path.as_str(), OFlags::RDONLY, Mode::empty())
                .map(|fd| {
                    let set = $fs::fchmod(&fd, Mode::from_raw_mode(*mode));
                    let last_access = $fs::Timespec { tv_sec: 0, tv_nsec: $fs::UTIME_OMIT };
                    let last_modification = $fs::Timespec { tv_sec: *seconds, tv_nsec: 123_456_789 };
                    let times = $fs::futimens(&fd, &$fs::Timestamps { last_access, last_modification });
                    let stat = $fs::fstat(&fd).unwrap();
                    let mtime = (stat.st_mtime, stat.st_mtime_nsec);
                    format!("{set:?} {times:?} {:o} {mtime:?}", stat.st_mode)
                }),
            Call::ReadLink(path) => $fs::readlinkat(top, path.as_str(), Vec::new()).map(|to| format!("{to:?}")),
            Call::Mkdir(path) => $fs::mkdirat(top, path.as_str(), Mode::from_raw_mode(0o755)).map(|()| String::new()),
            Call::Unlink(path, rmdir) => {
                let flags = if *rmdir { AtFlags::REMOVEDIR } else { AtFlags::empty() };
                $fs::unlinkat(top, path.as_str(), flags).map(|()| String::new())
            }
            Call::Rename(from, to, flags) => {
                $fs::renameat_with(top, from.as_str(), top, to.as_str(), *flags).map(|()| String::new())
            }
            Call::Link(from, to) => {
                $fs::linkat(top, from.as_str(), top, to.as_str(), AtFlags::empty()).map(|()| String::new())
            }
            Call::Symlink(to, path) => $fs::symlinkat(to.as_str(), top, path.as_str()).map(|()| String::new()),
            Call::Stat(path, follow) => {
                let flags = if *follow { AtFlags::empty() } else { AtFlags::SYMLINK_NOFOLLOW };
                $fs::statat(top, path.as_str(), flags).map(|stat| {
                    let folder = stat.st_mode & 0o40000 != 0;
                    let size = if folder { 0 } else { stat.st_size };
                    format!("{:o} {} {size}", stat.st_mode, stat.st_nlink)
                })
            }
            Call::List(path) => $fs::openat(top, path.as_str(), OFlags::DIRECTORY, Mode::empty()).map(|fd| {
                let entries = $fs::Dir::new(fd).unwrap().map(|entry| {
                    let entry = entry.unwrap();
                    (entry.file_name().to_str().unwrap().to_owned(), format!("{:?}", entry.file_type()))
                });
                format!("{:?}", entries.collect::<BTreeMap<_, _>>())
            }),
            Call::Holes(path, at) => $fs::openat(top, path.as_str(), OFlags::RDONLY, Mode::empty()).map(|fd| {
                let told = [SeekFrom::Data(*at), SeekFrom::Hole(*at)].map(|to| $fs::seek(&fd, to));
                let file = <$file>::from(fd);
                let meta = file.metadata().unwrap();
                let mut content = vec![1; usize::try_from(meta.len()).unwrap()];
                if meta.is_file() {
                    assert_eq!(file.read_at(&mut content, 0).unwrap(), content.len());
                    holes(&content, usize::try_from(*at).unwrap(), told)
                } else {
                    String::new()
                }
            }),
        }
    }};
}

/// What was told of holes from an offset on, as far as all file systems tell the same; where data begin they may differ, but not so that any are passed over.
fn holes(content: &[u8], at: usize, [data, hole]: [Result<u64, Errno>; 2]) -> String {
    let end = |told: u64| usize::try_from(told).unwrap();
    if at >= content.len() {
        return format!("{data:?} {hole:?}");
    }
    let data = data.map_or_else(|error| if error == Errno::NXIO { content.len() } else { 0 }, end);
    let is_sound = data >= at && content[at..data].iter().all(|byte| *byte == 0);
    let hole = end(hole.unwrap());
    format!("{is_sound} {}", (at..=content.len()).contains(&hole))
}

fn real_tree(folder: &Path, below: &Path, found: &mut BTreeMap<std::path::PathBuf, Entry>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let (path, name) = (entry.path(), below.join(entry.file_name()));
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            found.insert(name.clone(), Entry::Folder);
            real_tree(&path, &name, found);
        } else if kind.is_symlink() {
            found.insert(name, Entry::Link(std::fs::read_link(&path).unwrap()));
        } else {
            found.insert(name, Entry::File(std::fs::read(&path).unwrap()));
        }
    }
}

#[test]
fn the_model_answers_as_the_kernel_does() {
    for seed in 0..300 {
        let real = tempfile::tempdir().unwrap();
        // A top above it: `..` from a folder that was moved must not leave it.
        let path = real.path().join("top");
        std::fs::create_dir(&path).unwrap();
        let real_path = path.clone();
        fine(seed, move || {
            disk_at("/data");
            fs::create_dir("/data/top").unwrap();
            let real_top = ::rustix::fs::open(&real_path, OFlags::DIRECTORY, Mode::empty()).unwrap();
            let top = rx::open("/data/top", OFlags::DIRECTORY, Mode::empty()).unwrap();
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut calls = Vec::new();
            for _ in 0..120 {
                let call = random_call(&mut rng);
                calls.push(call.clone());
                let ours: Result<String, Errno> = perform!(&call, &top, rx, File, rustix);
                let theirs: Result<String, Errno> = {
                    use ::rustix::fs as real_rx;
                    perform!(&call, &real_top, real_rx, std::fs::File, rustix)
                };
                if ours != theirs {
                    eprintln!("seed {seed}: {:?}\n  tree {:?}", calls.last(), super::tree("/data/top").keys());
                    eprintln!("  ours {ours:?}, the kernel's {theirs:?}");
                }
                assert_eq!(ours, theirs);
            }
            let mut found = BTreeMap::new();
            real_tree(&real_path, Path::new(""), &mut found);
            let ours = super::tree("/data/top");
            assert!(ours == found, "{:?} {:?}", ours.keys(), found.keys());
        });
    }
}
