//! A database that a real SQLite writes to, and its copy.
#![allow(missing_docs)]

mod support;

use std::path::Path;
use std::process::Command;

use paceline::watch::Watcher;
use support::TestLeader;
use support::processes::{find, run, wait_same};

/// What the shell prints for these statements.
fn sqlite(database: &Path, statements: &str) -> String {
    run(Command::new(find("sqlite3", "sqlite3")).arg(database).arg(statements))
}

#[test]
fn after_each_of_five_small_transactions_the_copy_of_a_database_equals_it() {
    for journal in ["delete", "wal"] {
        let leader = TestLeader::start();
        let watcher = Watcher::start(leader.leader.clone(), leader.dir.path(), None).unwrap();
        let follower = leader.follower();
        let (database, copy) = (leader.dir.path().join("data.db"), follower.dir.path().join("data.db"));
        let rows = |count: u32, at: u32| {
            format!(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count})
                 INSERT INTO t SELECT i + {at}, hex(randomblob(20)) FROM n;"
            )
        };
        sqlite(&database, &format!("PRAGMA journal_mode = {journal}; CREATE TABLE t (id, text); {}", rows(1000, 0)));
        wait_same(leader.dir.path(), follower.dir.path());
        for transaction in 1..=5 {
            // What was logged is brought into the database when the shell closes it.
            sqlite(&database, &rows(20, 1000 + 20 * transaction));
            wait_same(leader.dir.path(), follower.dir.path());
        }
        let shows = |database| sqlite(database, "SELECT count(*), max(id) FROM t; PRAGMA integrity_check;");
        assert_eq!((shows(&copy), shows(&database)), ("1100|1120\nok\n".to_owned(), "1100|1120\nok\n".to_owned()));
        watcher.stop();
        leader.shut_down();
    }
}
