//! What fuzz targets reach of etcd's answers.

use std::net::SocketAddr;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::client::Client;
use super::config::EtcdConfig;
use super::former::Term;
use super::watch::tells_a_change;
use super::wire::{
    KeepAliveAnswer, KeyValue, Keys, LeaseAnswer, RangeAnswer, Refusal, TimeToLiveAnswer, TokenAnswer, TxnAnswer,
};
use super::{candidates_in, data_set_in, in_sync_in, leader_in, secret_in};
use crate::coordinator::CoordinatorError;
use crate::stop::Stop;

/// Reads an answer as each thing that it could be, and what is in it.
pub fn read_etcd_answer(answer: &[u8]) {
    if let Some(refusal) = Refusal::in_answer(answer) {
        assert!(!refusal.message.contains(char::is_control) && refusal.message.len() < 1024);
    }
    let _ = tells_a_change(answer).map_err(|error| error.to_string());
    if let Some(range) = read::<RangeAnswer>(answer) {
        range.kvs.iter().for_each(read_pair);
    }
    if let Some(txn) = read::<TxnAnswer>(answer) {
        (0..3).filter_map(|place| txn.found(place)).for_each(read_pair);
        for bid in candidates_in(&txn).into_iter().filter_map(|candidate| candidate.bid) {
            assert_eq!(bid.to_string().parse().ok(), Some(bid));
        }
    }
    if let Some(lease) = read::<TimeToLiveAnswer>(answer) {
        assert!(lease.keys().all(|key| !key.contains(char::is_control)));
        let _ = super::lease::seconds(lease.lease.ttl);
    }
    if let Some(lease) = read::<LeaseAnswer>(answer) {
        let _ = super::lease::seconds(lease.ttl);
    }
    let _ = (read::<KeepAliveAnswer>(answer), read::<TokenAnswer>(answer));
}

fn read<'a, T: Deserialize<'a>>(answer: &'a [u8]) -> Option<T> {
    serde_json::from_slice(answer).map_err(|error| error.to_string()).ok()
}

fn read_pair(pair: &KeyValue) {
    let said = |error: CoordinatorError| error.to_string();
    let _ = secret_in(&pair.value, "key").map_err(said);
    let _ = data_set_in(pair).map_err(said);
    if let Ok(leader) = leader_in(pair).map_err(said) {
        assert!(!leader.uri.contains(char::is_control));
    }
    if let Ok(set) = in_sync_in(pair).map_err(said) {
        assert_eq!(set.to_string().parse().ok(), Some(set));
    }
    if let Some(term) = Term::parse(&pair.value) {
        assert_eq!(Term::parse(term.to_string().as_bytes()), Some(term));
    }
}

/// Calls to one member of etcd.
pub struct EtcdCalls(Client);

impl EtcdCalls {
    /// To the member at this address.
    pub fn to(member: SocketAddr) -> Result<Self, CoordinatorError> {
        let endpoint = format!("http://{member}").parse().expect("an address is an endpoint");
        let mut config = EtcdConfig::new([endpoint]);
        config.answer_timeout = Duration::from_secs(2);
        Client::new(&config).map(Self)
    }

    /// Asks once, and reads the answer.
    pub fn ask(&self) -> Result<(), String> {
        self.0.call_once::<Value>("kv/range", &Keys::One("key".into()).range()).map(drop)
    }

    /// Watches until the stream ends.
    pub fn watch(&self) -> Result<(), String> {
        let (stop, keys) = (Stop::new(), Keys::FirstBelow("keys/".into()));
        let mut lines = self.0.open("watch", &keys.watch(1), &stop)?;
        loop {
            let line = lines.next().map_err(|error| error.to_string())?;
            tells_a_change(&line).map_err(|error| error.to_string())?;
        }
    }
}
