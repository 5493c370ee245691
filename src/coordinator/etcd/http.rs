//! One request to one member of etcd: bounded in time and size, and an error says whether it may have been carried out.
//!
//! Answers are read whole, up to [`ANSWER_BYTES_MAX`]. A stream never ends; it has an agent of its own, because what
//! unblocks its reader (`Agent::shutdown`) ends everything else the agent does.

use std::io::{self, BufRead, BufReader, Read};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use serde_json::Value;
use ureq::config::Config;
use ureq::http::Response;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::unversioned::transport::DefaultConnector;
use ureq::{Agent, Body, BodyReader, Error, Timeout};

use super::config::EtcdConfig;
use super::names::Names;
use super::wire::Refusal;
use crate::coordinator::CoordinatorError;
use crate::stop::{OnSet, Stop};

/// What an answer, or a line of a stream, may be long. etcd takes values up to 1.5 MiB; ours are a thousandth of that.
const ANSWER_BYTES_MAX: u64 = 4 << 20;

/// The largest file of certificates: several times what all well-known authorities need.
const CA_FILE_BYTES_MAX: u64 = 4 << 20;

pub(super) struct Http {
    names: Names,
    calls: Agent,
    streams: Config,
}

/// Why a request came to nothing.
#[derive(Debug)]
pub(super) enum HttpError {
    /// The member surely did not get it.
    NotSent(String),
    /// The member may have got it, and may have carried it out.
    NoAnswer(String),
    /// etcd says no.
    Refused(Refusal),
}

impl Http {
    /// `failed` is set when a thread of ours fails.
    pub(super) fn new(config: &EtcdConfig, failed: Arc<AtomicBool>) -> Result<Self, CoordinatorError> {
        let roots = match &config.ca_file {
            None => RootCerts::WebPki,
            Some(file) => {
                let certificates = read_certificates(file).map_err(|error| CoordinatorError::Setting {
                    name: "ca_file",
                    reason: format!("{}: {error}; give a readable file of certificates (PEM)", file.display()),
                })?;
                RootCerts::Specific(Arc::new(certificates))
            }
        };
        let base = || {
            Agent::config_builder()
                // Errors come with a body that says why.
                .http_status_as_error(false)
                // What decides roles must not depend on what the environment says of proxies.
                .proxy(None)
                .max_redirects(0)
                .max_redirects_will_error(false)
                .user_agent(concat!("paceline/", env!("CARGO_PKG_VERSION")))
                .tls_config(TlsConfig::builder().root_certs(roots.clone()).build())
                .timeout_connect(Some(config.answer_timeout / 2))
        };
        let calls = base().timeout_global(Some(config.answer_timeout)).build();
        let streams = base()
            .timeout_send_request(Some(config.answer_timeout))
            .timeout_send_body(Some(config.answer_timeout))
            .timeout_per_read(Some(stream_idle_max(config)))
            .build();
        let names = Names::start(failed)?;
        let calls = Agent::with_parts(calls, DefaultConnector::new(), names.clone());
        Ok(Self { names, calls, streams })
    }

    /// Posts and reads the whole answer. Blocks up to the answer timeout.
    pub(super) fn post(&self, url: &str, body: &Value, token: Option<&str>) -> Result<Vec<u8>, HttpError> {
        let mut response = send(&self.calls, url, body, token)?;
        read(url, &mut response)
    }

    /// Posts and leaves the answer open. `stop` ends it.
    pub(super) fn open(&self, url: &str, body: &Value, token: Option<&str>, stop: &Stop) -> Result<Lines, HttpError> {
        let agent = Agent::with_parts(self.streams.clone(), DefaultConnector::new(), self.names.clone());
        let shut = agent.clone();
        let on_stop = stop.on_set(move || shut.shutdown());
        let mut response = send(&agent, url, body, token)?;
        if !response.status().is_success() {
            read(url, &mut response)?;
        }
        let lines = BufReader::new(response.into_body().into_reader());
        Ok(Lines { lines, _on_stop: on_stop })
    }
}

/// A stream that says nothing for so long is opened anew: it may come from a member that nobody reaches any more.
fn stream_idle_max(config: &EtcdConfig) -> Duration {
    (config.lease_ttl / 2).min(Duration::from_secs(5))
}

fn read_certificates(file: &std::path::Path) -> io::Result<Vec<Certificate<'static>>> {
    let mut pem = Vec::new();
    std::fs::File::open(file)?.take(CA_FILE_BYTES_MAX).read_to_end(&mut pem)?;
    let mut certificates = Vec::new();
    for item in parse_pem(&pem) {
        if let PemItem::Certificate(certificate) = item.map_err(Error::into_io)? {
            certificates.push(certificate);
        }
    }
    if certificates.is_empty() {
        return Err(io::Error::other("no certificate in it"));
    }
    Ok(certificates)
}

fn send(agent: &Agent, url: &str, body: &Value, token: Option<&str>) -> Result<Response<Body>, HttpError> {
    let mut request = agent.post(url).content_type("application/json");
    if let Some(token) = token {
        request = request.header("Authorization", token);
    }
    request.send(body.to_string()).map_err(|error| HttpError::of(url, error))
}

/// Reads the whole answer. An error may come with any status.
fn read(url: &str, response: &mut Response<Body>) -> Result<Vec<u8>, HttpError> {
    let body = response.body_mut().with_config().limit(ANSWER_BYTES_MAX);
    let answer = body.read_to_vec().map_err(|error| HttpError::of(url, error))?;
    if let Some(refusal) = Refusal::in_answer(&answer) {
        return Err(HttpError::Refused(refusal));
    }
    if response.status().is_success() {
        return Ok(answer);
    }
    // Not what it says: whatever that is, it may quote the question, and there are secrets in those.
    Err(HttpError::NoAnswer(format!("not etcd's v3 gateway (etcd 3.4 or later): HTTP {}", response.status())))
}

impl HttpError {
    fn of(url: &str, error: Error) -> Self {
        let surely_not_sent = match &error {
            Error::Timeout(Timeout::Resolve | Timeout::Connect) | Error::HostNotFound | Error::ConnectionFailed => true,
            // Only the answer to connecting; what happens to an open connection has other names.
            Error::Io(error) => error.kind() == io::ErrorKind::ConnectionRefused,
            _ => false,
        };
        let text = match &error {
            // So TLS names what it does not like.
            Error::Io(error) if error.kind() == io::ErrorKind::InvalidData => {
                format!("TLS: {error}; does it speak TLS, and did what is in ca_file sign its certificate?")
            }
            Error::Io(error) if has_hung_up(error) && url.starts_with("http:") => {
                "it closed the connection; if it speaks TLS, its address is https://...".into()
            }
            Error::Io(error) => error.to_string(),
            Error::Timeout(phase) => format!("no answer in time ({phase})"),
            other => other.to_string(),
        };
        if surely_not_sent { Self::NotSent(text) } else { Self::NoAnswer(text) }
    }
}

fn has_hung_up(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset)
}

/// The lines of a stream.
pub(super) struct Lines {
    lines: BufReader<BodyReader<'static>>,
    _on_stop: OnSet,
}

impl Lines {
    /// The next line. Blocks until there is one, the stream ends or is stopped (an error), or nothing came for
    /// [`stream_idle_max`] ([`io::ErrorKind::TimedOut`]).
    pub(super) fn next(&mut self) -> io::Result<Vec<u8>> {
        let mut line = Vec::new();
        let mut limited = self.lines.by_ref().take(ANSWER_BYTES_MAX);
        limited.read_until(b'\n', &mut line).map_err(|error| match Error::from(error) {
            Error::Timeout(_) => io::ErrorKind::TimedOut.into(),
            other => other.into_io(),
        })?;
        if line.last() != Some(&b'\n') {
            let text = if line.is_empty() { "etcd ended it" } else { "a line is too long, or torn" };
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
        }
        Ok(line)
    }
}
