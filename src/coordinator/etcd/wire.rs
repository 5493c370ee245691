//! The JSON of etcd's v3 gateway: keys and values in base64, 64-bit integers as strings, what is 0 or empty left out.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny};
use serde_json::{Value, json};

use crate::types::shorten;

/// Standard base64 with padding.
pub(super) fn base64(bytes: impl AsRef<[u8]>) -> String {
    STANDARD.encode(bytes)
}

/// The end of the range of all keys that begin with `prefix`, which ends in a character of ASCII.
fn end_of_prefix(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

/// Which keys are read or watched.
#[derive(Clone, Debug)]
pub(super) enum Keys {
    /// One key.
    One(String),
    /// All below a prefix that ends in `/`; reading them gives the one that was created first.
    FirstBelow(String),
    /// The same; reading them gives all, in the order in which they were created.
    AllBelow(String),
}

/// More nodes than any cluster has.
const KEYS_MAX: u32 = 1024;

impl Keys {
    /// The request that reads them, linearizably.
    pub(super) fn range(&self) -> Value {
        match self {
            Self::One(key) => json!({"key": base64(key)}),
            Self::FirstBelow(prefix) => in_order(prefix, 1),
            Self::AllBelow(prefix) => in_order(prefix, KEYS_MAX),
        }
    }

    /// The request that watches them from `revision` on.
    pub(super) fn watch(&self, revision: i64) -> Value {
        let mut request = match self {
            Self::One(key) => json!({"key": base64(key)}),
            Self::FirstBelow(prefix) | Self::AllBelow(prefix) => {
                json!({"key": base64(prefix), "range_end": base64(end_of_prefix(prefix))})
            }
        };
        request["start_revision"] = revision.to_string().into();
        json!({"create_request": request})
    }
}

fn in_order(prefix: &str, limit: u32) -> Value {
    json!({
        "key": base64(prefix),
        "range_end": base64(end_of_prefix(prefix)),
        "limit": limit.to_string(),
        "sort_order": "ASCEND",
        "sort_target": "CREATE",
    })
}

/// The request that lists the names of all keys there are, up to `limit`.
pub(super) fn list_names(limit: u32) -> Value {
    // A key and an end of one NUL: from the first to the last.
    json!({"key": base64([0]), "range_end": base64([0]), "limit": limit.to_string(), "keys_only": true})
}

/// What must hold of a key for a transaction to succeed.
#[derive(Clone, Copy, Debug)]
pub(super) enum Revision {
    /// The revision that created it; 0: there is none.
    Create(i64),
    /// The revision that changed it last; 0: there is none.
    Mod(i64),
}

pub(super) fn compare(key: &str, revision: Revision) -> Value {
    let (target, field, number) = match revision {
        Revision::Create(number) => ("CREATE", "create_revision", number),
        Revision::Mod(number) => ("MOD", "mod_revision", number),
    };
    json!({"key": base64(key), "target": target, "result": "EQUAL", field: number.to_string()})
}

/// The key must be there with this value.
pub(super) fn compare_value(key: &str, value: impl AsRef<[u8]>) -> Value {
    json!({"key": base64(key), "target": "VALUE", "result": "EQUAL", "value": base64(value)})
}

pub(super) fn put(key: &str, value: impl AsRef<[u8]>) -> Value {
    json!({"request_put": {"key": base64(key), "value": base64(value)}})
}

/// A value that goes when the lease does.
pub(super) fn put_leased(key: &str, value: impl AsRef<[u8]>, lease: i64) -> Value {
    json!({"request_put": {"key": base64(key), "value": base64(value), "lease": lease.to_string()}})
}

pub(super) fn get(key: &str) -> Value {
    json!({"request_range": {"key": base64(key)}})
}

pub(super) fn get_all(keys: &Keys) -> Value {
    json!({"request_range": keys.range()})
}

pub(super) fn delete(key: &str) -> Value {
    json!({"request_delete_range": {"key": base64(key)}})
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Header {
    #[serde(default, deserialize_with = "int")]
    pub(super) revision: i64,
    /// Another one for each leader that etcd's members elect.
    #[serde(default, deserialize_with = "int")]
    pub(super) raft_term: i64,
}

#[derive(Default, Deserialize)]
pub(super) struct KeyValue {
    #[serde(default, deserialize_with = "bytes")]
    pub(super) key: Vec<u8>,
    #[serde(default, deserialize_with = "bytes")]
    pub(super) value: Vec<u8>,
    #[serde(default, deserialize_with = "int")]
    pub(super) create_revision: i64,
    #[serde(default, deserialize_with = "int")]
    pub(super) mod_revision: i64,
    #[serde(default, deserialize_with = "int")]
    pub(super) lease: i64,
}

#[derive(Deserialize)]
pub(super) struct RangeAnswer {
    #[serde(default)]
    pub(super) header: Header,
    #[serde(default)]
    pub(super) kvs: Vec<KeyValue>,
}

#[derive(Deserialize)]
pub(super) struct TxnAnswer {
    #[serde(default)]
    pub(super) header: Header,
    #[serde(default)]
    pub(super) succeeded: bool,
    #[serde(default)]
    responses: Vec<TxnPart>,
}

#[derive(Default, Deserialize)]
struct TxnPart {
    response_range: Option<RangeAnswer>,
}

impl TxnAnswer {
    /// What the read at this place of the transaction found, if it found something.
    pub(super) fn found(&self, place: usize) -> Option<&KeyValue> {
        self.all_found(place).first()
    }

    /// All that it found.
    pub(super) fn all_found(&self, place: usize) -> &[KeyValue] {
        let range = self.responses.get(place).and_then(|part| part.response_range.as_ref());
        range.map(|range| &range.kvs[..]).unwrap_or_default()
    }
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct LeaseAnswer {
    /// Seconds; what is left out, 0 or negative: there is no such lease.
    #[serde(rename = "TTL", default, deserialize_with = "int")]
    pub(super) ttl: i64,
    #[serde(rename = "grantedTTL", default, deserialize_with = "int")]
    pub(super) granted_ttl: i64,
    #[serde(default)]
    pub(super) header: Header,
}

/// The same with the names of the keys that go with the lease, in base64.
#[derive(Debug, Default, Deserialize)]
pub(super) struct TimeToLiveAnswer {
    #[serde(flatten)]
    pub(super) lease: LeaseAnswer,
    #[serde(default)]
    keys: Vec<String>,
}

impl TimeToLiveAnswer {
    pub(super) fn keys(&self) -> impl Iterator<Item = String> + '_ {
        self.keys.iter().filter_map(|key| Some(one_line(std::str::from_utf8(&STANDARD.decode(key).ok()?).ok()?)))
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct KeepAliveAnswer {
    #[serde(default)]
    pub(super) result: LeaseAnswer,
}

#[derive(Deserialize)]
pub(super) struct TokenAnswer {
    #[serde(default)]
    pub(super) token: String,
}

/// An answer of which only the success matters.
#[derive(Debug, Deserialize)]
pub(super) struct Done {}

/// One line of a watch.
#[derive(Debug, Deserialize)]
pub(super) struct WatchLine {
    #[serde(default)]
    pub(super) result: WatchResult,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct WatchResult {
    #[serde(default)]
    pub(super) canceled: bool,
    #[serde(default)]
    pub(super) cancel_reason: String,
    /// Not 0: what was asked for is forgotten, and this is the oldest revision there is.
    #[serde(default, deserialize_with = "int")]
    pub(super) compact_revision: i64,
    #[serde(default)]
    pub(super) events: Vec<IgnoredAny>,
}

/// An error that etcd answered with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    /// gRPC's number for the kind of error; 2 (unknown) if the answer has none.
    pub(super) code: i64,
    pub(super) message: String,
}

/// The kinds of gRPC errors that matter here.
pub(super) mod code {
    pub(in crate::coordinator::etcd) const CANCELLED: i64 = 1;
    pub(in crate::coordinator::etcd) const UNKNOWN: i64 = 2;
    pub(in crate::coordinator::etcd) const DEADLINE_EXCEEDED: i64 = 4;
    pub(in crate::coordinator::etcd) const PERMISSION_DENIED: i64 = 7;
    pub(in crate::coordinator::etcd) const INTERNAL: i64 = 13;
    pub(in crate::coordinator::etcd) const UNAVAILABLE: i64 = 14;
    pub(in crate::coordinator::etcd) const UNAUTHENTICATED: i64 = 16;
}

impl Refusal {
    /// The error in an answer, in whichever of the gateway's shapes: `{"error": "..."}`, `{"error": {"message": "..."}}`,
    /// `{"code": n, "message": "..."}`.
    pub(super) fn in_answer(answer: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Shape {
            error: Option<Value>,
            message: Option<Value>,
            code: Option<Value>,
        }
        let shape: Shape = serde_json::from_slice(answer).ok()?;
        let (message, code) = match shape.error {
            Some(Value::String(text)) => (text, shape.code),
            Some(Value::Object(object)) => {
                let message = object.get("message").and_then(Value::as_str).unwrap_or("no message").to_owned();
                (message, object.get("grpc_code").or_else(|| object.get("code")).cloned())
            }
            Some(other) => (other.to_string(), shape.code),
            None => (shape.message?.as_str()?.to_owned(), Some(shape.code?)),
        };
        Some(Self { code: code.and_then(|code| code.as_i64()).unwrap_or(code::UNKNOWN), message: one_line(&message) })
    }
}

/// What a peer says, fit for a line of a log.
pub(super) fn one_line(text: &str) -> String {
    let text: String = text.trim().chars().take(1024).map(|c| if c.is_control() { ' ' } else { c }).collect();
    shorten(&text)
}

/// 64-bit integers come as strings.
fn int<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Int {
        Text(String),
        Number(i64),
    }
    match Int::deserialize(deserializer)? {
        Int::Text(text) => text.parse().map_err(|_| D::Error::custom("a 64-bit integer was expected")),
        Int::Number(number) => Ok(number),
    }
}

fn bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    let text = String::deserialize(deserializer)?;
    STANDARD.decode(text).map_err(|_| D::Error::custom("base64 was expected"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_etcd_are_understood() {
        let range: RangeAnswer = serde_json::from_str(
            r#"{"header":{"cluster_id":"324952591200643719","revision":"3"},"kvs":[{"key":"bGF2aW5tcS9sZWFkZXIvNGQ=",
            "create_revision":"2","mod_revision":"3","version":"1","value":"dGNwOi8vYTo1Njc5","lease":"77"}],"count":"1"}"#,
        )
        .unwrap();
        let kv = &range.kvs[0];
        assert_eq!((kv.key.as_slice(), kv.value.as_slice()), (&b"lavinmq/leader/4d"[..], &b"tcp://a:5679"[..]));
        assert_eq!((range.header.revision, kv.create_revision, kv.mod_revision, kv.lease), (3, 2, 3, 77));
        let lost: KeepAliveAnswer =
            serde_json::from_str(r#"{"result":{"header":{"revision":"2"},"ID":"79"}}"#).unwrap();
        assert_eq!(lost.result.ttl, 0);
        let txn: TxnAnswer = serde_json::from_str(
            r#"{"responses":[{"response_range":{"kvs":[{"value":"YQ=="}]}},{"response_put":{}}]}"#,
        )
        .unwrap();
        assert!(
            !txn.succeeded && txn.found(0).unwrap().value == b"a" && txn.found(1).is_none() && txn.found(2).is_none()
        );
        let line: WatchLine =
            serde_json::from_str(r#"{"result":{"created":true,"events":[{"type":"DELETE"}]}}"#).unwrap();
        assert_eq!(line.result.events.len(), 1);
    }

    #[test]
    fn nonsense_is_an_error_and_not_a_value() {
        for bad in [r#"{"kvs":[{"value":"?"}]}"#, r#"{"kvs":[{"lease":"x"}]}"#, r#"{"kvs":{}}"#, "[", "", "null"] {
            assert!(serde_json::from_str::<RangeAnswer>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn all_three_shapes_of_errors_are_understood() {
        let refusal = |answer: &str| Refusal::in_answer(answer.as_bytes()).map(|it| (it.code, it.message));
        let text = "etcdserver: lease already exists";
        for answer in [
            format!(r#"{{"error":"{text}","message":"{text}","code":9}}"#),
            format!(r#"{{"error":{{"grpc_code":9,"http_code":400,"message":"{text}"}}}}"#),
            format!(r#"{{"code":9,"message":"{text}","details":[]}}"#),
        ] {
            assert_eq!(refusal(&answer), Some((9, text.to_owned())), "{answer}");
        }
        assert_eq!(refusal(r#"{"error":"x"}"#), Some((code::UNKNOWN, "x".into())));
        assert_eq!(refusal(r#"{"error":{}}"#), Some((code::UNKNOWN, "no message".into())));
        for fine in [r#"{"header":{}}"#, r#"{"message":"x"}"#, r#"{"code":1}"#, "Not Found", ""] {
            assert_eq!(refusal(fine), None, "{fine}");
        }
        let long = refusal(&format!(r#"{{"error":"{}"}}"#, "x".repeat(5000))).unwrap();
        assert!(long.1.len() < 200);
    }

    #[test]
    fn a_prefix_ends_before_its_successor() {
        let range = Keys::FirstBelow("lavinmq/leader/".into()).range();
        assert_eq!(range["range_end"], base64("lavinmq/leader0"));
    }
}
