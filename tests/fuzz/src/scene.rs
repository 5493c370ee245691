//! A data directory beside files that are nobody's business but their owner's.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// Where `run` wants it: the engine ends the process without tidying up, so that does.
pub fn folder() -> TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

/// One for all inputs, each of which finds a directory of its own.
pub struct Scene {
    top: TempDir,
    data: PathBuf,
}

impl Scene {
    pub fn make() -> Self {
        let top = folder();
        fs::create_dir(top.path().join("beside")).unwrap();
        fs::write(top.path().join("beside/victim"), "intact").unwrap();
        let data = top.path().join("data");
        Self { top, data }
    }

    /// A new directory: empty, or with some files.
    pub fn begin(&self, with_files: bool) -> &Path {
        fs::create_dir(&self.data).unwrap();
        if with_files {
            fs::create_dir(self.data.join("d")).unwrap();
            for (name, content) in [("a", &b"0123456789"[..]), ("d/b", &[7; 600]), ("e", b"")] {
                fs::write(self.data.join(name), content).unwrap();
            }
            std::os::unix::fs::symlink(self.top.path().join("beside"), self.data.join("link")).unwrap();
        }
        &self.data
    }

    /// Nothing outside was changed.
    pub fn end(&self) {
        let names = |path: &Path| {
            let mut names: Vec<_> = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        assert_eq!(names(self.top.path()), ["beside", "data"]);
        assert_eq!(names(&self.top.path().join("beside")), ["victim"]);
        assert_eq!(fs::read(self.top.path().join("beside/victim")).unwrap(), b"intact");
        fs::remove_dir_all(&self.data).unwrap();
    }
}
