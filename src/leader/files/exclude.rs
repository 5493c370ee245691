//! Which files the settings exclude.

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

use crate::error::Error;
use crate::types::RelPath;

/// Globs of names. A folder whose name one of them matches is excluded with all that is in it, as is one of which a glob
/// matches everything (`cache/**`): it is neither walked nor watched.
#[derive(Debug)]
pub(in crate::leader) struct Exclude {
    names: GlobSet,
    /// `cache`, for `cache/**`.
    whole_folders: GlobSet,
}

impl Exclude {
    pub(in crate::leader) fn new(patterns: &[String]) -> Result<Self, Error> {
        let whole_folders = patterns.iter().filter_map(|pattern| pattern.strip_suffix("/**"));
        Ok(Self { names: globs(patterns.iter().map(String::as_str))?, whole_folders: globs(whole_folders)? })
    }

    pub(in crate::leader) fn folder(&self, path: &RelPath) -> bool {
        let is_excluded = |folder: &str| self.names.is_match(folder) || self.whole_folders.is_match(folder);
        above(path).chain([path.as_str()]).any(is_excluded)
    }

    pub(in crate::leader) fn file(&self, path: &RelPath) -> bool {
        self.names.is_match(path.as_str()) || above(path).any(|folder| self.names.is_match(folder))
    }
}

/// The folders that a name is in.
fn above(path: &RelPath) -> impl Iterator<Item = &str> {
    path.as_str().match_indices('/').map(|(end, _)| &path.as_str()[..end])
}

fn globs<'a>(patterns: impl Iterator<Item = &'a str>) -> Result<GlobSet, Error> {
    let failed = |error: globset::Error| Error::Setting { name: "exclude", reason: error.to_string() };
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        set.add(GlobBuilder::new(pattern).literal_separator(true).build().map_err(failed)?);
    }
    set.build().map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_excluded_with_all_that_is_in_it() {
        let patterns = ["*.tmp", "cache/**", "**/old", "logs/*.gz"].map(str::to_owned);
        let exclude = Exclude::new(&patterns).unwrap();
        let path = |name: &str| RelPath::new(name).unwrap();
        for folder in ["cache", "cache/a", "x/old", "old/b", "a.tmp"] {
            assert!(exclude.folder(&path(folder)), "{folder}");
        }
        for folder in ["logs", "cached", "x", "x/cache"] {
            assert!(!exclude.folder(&path(folder)), "{folder}");
        }
        for file in ["a.tmp", "a.tmp/b", "cache/a/b", "x/old/y", "logs/1.gz"] {
            assert!(exclude.file(&path(file)), "{file}");
        }
        for file in ["cache", "x/a.tmp", "logs/1", "old.d/x"] {
            assert!(!exclude.file(&path(file)), "{file}");
        }
    }
}
