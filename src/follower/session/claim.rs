//! The first change that a connection makes to the directory. Part of [`Session`].

use super::super::contact::{Change, HeldBack};
use super::{Phase, Session, out_of_place};
use crate::error::Error;
use crate::protocol::ActionKind;
use crate::types::RelPath;

impl Session<'_> {
    /// A file is about to change, or to be deleted.
    pub(super) fn changes(&mut self, path: &RelPath, change: Change) -> Result<(), Error> {
        if self.phase == Phase::Before {
            return Err(out_of_place(format!("action on {path} before a sync began")));
        }
        // In this order: a directory that is somebody's from now on is one of which the leader may delete, the next time.
        if let Some(contact) = &mut self.contact {
            contact.changes(self.parts.data.path(), path, change)?;
        }
        self.begin_contact()
    }

    /// The first change by a leader that is not trusted: what it has deleted so far is counted, and then done.
    pub(super) fn begin_contact(&mut self) -> Result<(), Error> {
        let Some(contact) = self.contact.as_mut().filter(|contact| !contact.begun()) else { return Ok(()) };
        let deleted = contact.begin(self.parts.data.path())?;
        self.take_over()?;
        for held_back in deleted {
            match held_back {
                HeldBack::File(path) => self.actions.begin(path, ActionKind::Delete)?,
                HeldBack::Item(path) => self.actions.remove_item(&path)?,
            }
        }
        self.make_ready()
    }

    /// The directory is this leader's from now on, and marked before it is.
    pub(super) fn take_over(&mut self) -> Result<(), Error> {
        self.mark()?;
        self.belong()
    }

    pub(super) fn belong(&mut self) -> Result<(), Error> {
        self.parts.shared.leave_place();
        self.parts.data.follow(self.parts.theirs)?;
        self.parts.data.claim()?;
        self.parts.shared.claimed(true);
        let data_set = self.parts.data.data_set();
        self.parts.shared.update(|status| status.data_set = data_set);
        Ok(())
    }

    pub(super) fn make_ready(&mut self) -> Result<(), Error> {
        // The leader adds to the end of what it was told of.
        for (path, len) in std::mem::take(&mut self.unready) {
            self.changes(&path, Change::Content)?;
            self.actions.truncate(&path, len)?;
        }
        Ok(())
    }
}
