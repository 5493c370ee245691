//! Calls to etcd: whichever member answers, as the user that was set.
//!
//! A call goes to the member that answered last; when that does not answer, or cannot decide, to the next, until the call's
//! time is up. So a call may be carried out twice: all of ours bear that, being conditional or the same again. No thread of its own;
//! the token's lock is held only to copy it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::config::{EtcdConfig, EtcdEndpoint, EtcdUser};
use super::http::{Http, HttpError, Lines};
use super::wire::{Refusal, TokenAnswer, code};
use crate::coordinator::CoordinatorError;
use crate::stop::Stop;

/// Between two rounds of asking all members; it doubles with each.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_millis(400);

/// How often a call presents itself anew before it believes that it is refused.
const LOGINS_MAX: u32 = 3;

pub(super) struct Client {
    http: Http,
    endpoints: Vec<EtcdEndpoint>,
    /// Counts up when one does not answer; its remainder is the one to ask.
    current: AtomicUsize,
    user: Option<EtcdUser>,
    login: Mutex<Login>,
    warned_of_open_etcd: AtomicBool,
    prefix: String,
    call_timeout: Duration,
    /// Set by a thread that fails, of those that calls need.
    failed: Arc<AtomicBool>,
}

/// What is known of the right way to present ourselves.
#[derive(Clone, Default)]
enum Login {
    #[default]
    Unknown,
    /// etcd does not ask who we are.
    Open,
    Token(Arc<str>),
}

/// How long a call may try.
#[derive(Clone, Copy)]
pub(super) struct Limit<'a> {
    pub(super) deadline: Instant,
    pub(super) stop: &'a Stop,
}

impl Limit<'_> {
    fn is_over(&self) -> bool {
        self.stop.is_set() || Instant::now() >= self.deadline
    }
}

/// Why a call came to nothing.
#[derive(Debug)]
pub(super) struct CallError {
    pub(super) kind: Kind,
    /// A member that did not answer may have carried it out nevertheless.
    may_be_done: bool,
}

#[derive(Debug)]
pub(super) enum Kind {
    /// No member answered in time, or none could decide: who said what.
    Unavailable(String),
    /// etcd does not let us do this, and what to do about it.
    Denied(String),
    /// etcd says no.
    Refused(Refusal),
    /// The stop was set.
    Stopped,
}

impl Client {
    pub(super) fn new(config: &EtcdConfig) -> Result<Self, CoordinatorError> {
        config.check()?;
        let failed = Arc::<AtomicBool>::default();
        Ok(Self {
            http: Http::new(config, failed.clone())?,
            endpoints: config.endpoints.clone(),
            current: AtomicUsize::new(0),
            user: config.user.clone(),
            login: Mutex::default(),
            warned_of_open_etcd: AtomicBool::new(false),
            prefix: config.prefix.clone(),
            call_timeout: config.call_timeout,
            failed,
        })
    }

    /// Whether a thread has failed without which nothing is to be relied on.
    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    pub(super) fn fail(&self) {
        self.failed.store(true, Ordering::Relaxed);
    }

    /// The usual time for a call.
    pub(super) fn limit<'a>(&self, stop: &'a Stop) -> Limit<'a> {
        Limit { deadline: Instant::now() + self.call_timeout, stop }
    }

    /// Calls until a member answers or the limit comes. Blocks up to the limit and the answer timeout; twice that if it has to log
    /// in first.
    pub(super) fn call<T: DeserializeOwned>(&self, path: &str, body: &Value, limit: Limit<'_>) -> Result<T, CallError> {
        let mut failures = Failures::new(self.endpoints.len());
        let mut logins = 0;
        let mut pause = PAUSE_MIN;
        for attempt in 1.. {
            let turn = self.current.load(Ordering::Relaxed);
            match self.attempt(turn, path, body) {
                Ok(answer) => return Ok(answer),
                Err(HttpError::Refused(refusal))
                    if self.user.is_some() && logins < LOGINS_MAX && refusal.asks_for_login() && !limit.is_over() =>
                {
                    logins += 1;
                    *self.login.lock() = Login::Unknown;
                    continue;
                }
                Err(HttpError::Refused(refusal)) if !refusal.is_transient() => {
                    return Err(failures.into_error(self.refused(refusal)));
                }
                Err(error) => {
                    failures.note(turn, error);
                    self.turn_away(turn);
                }
            }
            if limit.stop.is_set() {
                return Err(failures.into_error(Kind::Stopped));
            }
            if Instant::now() >= limit.deadline {
                break;
            }
            if attempt % self.endpoints.len() == 0 {
                let _ = limit.stop.wait(pause.min(limit.deadline.saturating_duration_since(Instant::now())));
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
        let causes = failures.causes(&self.endpoints);
        Err(failures.into_error(Kind::Unavailable(causes)))
    }

    /// Calls the member that answered last, once. Blocks up to the answer timeout; twice that if it has to log in first.
    pub(super) fn call_once<T: DeserializeOwned>(&self, path: &str, body: &Value) -> Result<T, String> {
        self.attempt(self.current.load(Ordering::Relaxed), path, body).map_err(HttpError::into_text)
    }

    /// Opens a stream at the member that answered last; once. `stop` ends it.
    pub(super) fn open(&self, path: &str, body: &Value, stop: &Stop) -> Result<Lines, String> {
        let turn = self.current.load(Ordering::Relaxed);
        let opened =
            self.token(turn).and_then(|token| self.http.open(&self.url(turn, path), body, token.as_deref(), stop));
        opened.map_err(|error| {
            if !matches!(error, HttpError::Refused(_)) {
                self.turn_away(turn);
            }
            error.into_text()
        })
    }

    fn attempt<T: DeserializeOwned>(&self, turn: usize, path: &str, body: &Value) -> Result<T, HttpError> {
        let token = self.token(turn)?;
        let answer = self.http.post(&self.url(turn, path), body, token.as_deref())?;
        serde_json::from_slice(&answer)
            // Not with the error's own words: they quote the answer.
            .map_err(|error| HttpError::NoAnswer(format!("its answer makes no sense, at byte {}", error.column())))
    }

    /// The next call goes to the next member, unless another call has seen to that.
    fn turn_away(&self, turn: usize) {
        let _ = self.current.compare_exchange(turn, turn.wrapping_add(1), Ordering::Relaxed, Ordering::Relaxed);
    }

    fn url(&self, turn: usize, path: &str) -> String {
        format!("{}/v3/{path}", self.endpoints[turn % self.endpoints.len()].url())
    }

    /// What to present with a call; got from this member if it is not known.
    fn token(&self, turn: usize) -> Result<Option<Arc<str>>, HttpError> {
        let Some(user) = &self.user else { return Ok(None) };
        match self.login.lock().clone() {
            Login::Unknown => (),
            Login::Open => return Ok(None),
            Login::Token(token) => return Ok(Some(token)),
        }
        let password = String::from_utf8_lossy(user.password.as_bytes());
        let body = json!({"name": user.name, "password": password});
        let login = match self.http.post(&self.url(turn, "auth/authenticate"), &body, None) {
            Ok(answer) => match serde_json::from_slice::<TokenAnswer>(&answer) {
                Ok(answer) if !answer.token.is_empty() => Login::Token(answer.token.into()),
                _ => return Err(HttpError::NoAnswer("it gave no token".into())),
            },
            Err(HttpError::Refused(refusal)) if refusal.message.contains("authentication is not enabled") => {
                if !self.warned_of_open_etcd.swap(true, Ordering::Relaxed) {
                    log::warn!("etcd lets everyone in, though user {} was set: enable its authentication", user.name);
                }
                Login::Open
            }
            // A call that was not made was not carried out.
            Err(HttpError::NoAnswer(text)) => return Err(HttpError::NotSent(text)),
            Err(HttpError::Refused(refusal)) if refusal.is_transient() => {
                return Err(HttpError::NotSent(refusal.message));
            }
            Err(error) => return Err(error),
        };
        *self.login.lock() = login.clone();
        Ok(match login {
            Login::Token(token) => Some(token),
            Login::Open | Login::Unknown => None,
        })
    }

    fn refused(&self, refusal: Refusal) -> Kind {
        let message = &refusal.message;
        let prefix = &self.prefix;
        match &self.user {
            None if refusal.asks_for_login() => {
                Kind::Denied(format!("etcd wants to know who we are ({message}): set its user and password"))
            }
            Some(user) if refusal.asks_for_login() || message.contains("authentication failed") => {
                Kind::Denied(format!("etcd does not let user {} in ({message}): check name and password", user.name))
            }
            user if refusal.code == code::PERMISSION_DENIED => Kind::Denied(format!(
                "etcd user {} may not do this ({message}): grant it to read and write all keys below {prefix}/ \
                 (etcdctl role grant-permission ROLE readwrite --prefix=true {prefix}/)",
                user.as_ref().map_or("(none)", |user| &user.name)
            )),
            _ => Kind::Refused(refusal),
        }
    }
}

impl Refusal {
    /// The token is missing, has expired, is not known to this member, or is older than a change of rights.
    fn asks_for_login(&self) -> bool {
        self.code == code::UNAUTHENTICATED
            || ["invalid auth token", "user name is empty", "revision of auth store is old"]
                .iter()
                .any(|text| self.message.contains(text))
    }

    /// This member cannot decide at the moment; it may be carried out nevertheless.
    fn is_transient(&self) -> bool {
        use code::{CANCELLED, DEADLINE_EXCEEDED, INTERNAL, UNAVAILABLE, UNKNOWN};
        [CANCELLED, DEADLINE_EXCEEDED, INTERNAL, UNAVAILABLE, UNKNOWN].contains(&self.code)
    }
}

impl HttpError {
    fn into_text(self) -> String {
        match self {
            Self::NotSent(text) | Self::NoAnswer(text) => text,
            Self::Refused(refusal) => refusal.message,
        }
    }
}

/// The last failure of each member during a call.
struct Failures {
    by_member: Vec<Option<String>>,
    may_be_done: bool,
}

impl Failures {
    fn new(members: usize) -> Self {
        Self { by_member: vec![None; members], may_be_done: false }
    }

    fn note(&mut self, turn: usize, error: HttpError) {
        self.may_be_done |= !matches!(error, HttpError::NotSent(_));
        let member = turn % self.by_member.len();
        self.by_member[member] = Some(error.into_text());
    }

    fn causes(&self, endpoints: &[EtcdEndpoint]) -> String {
        let causes = endpoints.iter().zip(&self.by_member);
        let causes = causes.filter_map(|(endpoint, cause)| cause.as_ref().map(|cause| format!("{endpoint}: {cause}")));
        causes.collect::<Vec<_>>().join("; ")
    }

    fn into_error(self, kind: Kind) -> CallError {
        CallError { kind, may_be_done: self.may_be_done }
    }
}

impl CallError {
    /// Nothing was asked of etcd.
    pub(super) fn stopped() -> Self {
        Self { kind: Kind::Stopped, may_be_done: false }
    }

    fn into_text(self) -> String {
        match self.kind {
            Kind::Unavailable(causes) => format!(
                "etcd did not answer ({causes}): check that most of its members run, and that these are their addresses"
            ),
            Kind::Denied(text) => text,
            Kind::Refused(refusal) => format!("etcd says: {}", refusal.message),
            Kind::Stopped => "stopped".into(),
        }
    }

    /// What it means for a call that may be repeated.
    pub(super) fn of_read(self) -> CoordinatorError {
        match self.kind {
            Kind::Denied(_) => CoordinatorError::Refused(self.into_text()),
            Kind::Refused(_) => CoordinatorError::Unexpected(self.into_text()),
            Kind::Unavailable(_) | Kind::Stopped => CoordinatorError::Unavailable(self.into_text()),
        }
    }

    /// What it means for a write.
    pub(super) fn of_write(self) -> CoordinatorError {
        match self.kind {
            _ if self.may_be_done => CoordinatorError::Unknown(self.into_text()),
            Kind::Denied(_) => CoordinatorError::Refused(self.into_text()),
            _ => CoordinatorError::NotRecorded(self.into_text()),
        }
    }
}

impl std::fmt::Display for CallError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.kind {
            Kind::Unavailable(text) | Kind::Denied(text) => f.write_str(text),
            Kind::Refused(refusal) => f.write_str(&refusal.message),
            Kind::Stopped => f.write_str("stopped"),
        }
    }
}
