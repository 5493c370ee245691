//! `paceline forget`: takes a node that is gone for good out of the in-sync set.

use std::time::Duration;

use clap::Args;
use paceline::NodeId;
use paceline::coordinator::Coordinator;

use super::etcd::EtcdOptions;
use super::{Failure, say, start_logging};

#[derive(Args)]
pub(crate) struct Options {
    /// The node's id, as in its .clustering_id
    #[arg(value_name = "ID")]
    id: NodeId,
    #[command(flatten)]
    etcd: EtcdOptions,
}

pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    let coordinator = options.etcd.coordinator(None, Duration::ZERO)?;
    start_logging();
    let failed = |error: paceline::coordinator::CoordinatorError| Failure::runtime(error.to_string());
    let id = options.id;
    let removed = coordinator.remove_from_in_sync_set(id).map_err(failed)?;
    let set = coordinator.in_sync_set().map_err(failed)?.map_or("nothing".to_owned(), |set| set.to_string());
    match removed {
        true => say(&format!("{id} was taken out of the in-sync set, which is now {set}")),
        false => say(&format!("{id} was not in the in-sync set, which is {set}")),
    }
    Ok(())
}
