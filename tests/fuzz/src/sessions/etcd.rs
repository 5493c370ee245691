//! etcd's answers.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::sync::{Arc, Mutex};

use paceline::fuzzing::{EtcdCalls, read_etcd_answer};

use paceline_fuzz::{bounded, for_each_byte};

pub fn answers(input: &[u8]) {
    for_each_byte(input, 512, || read_etcd_answer(input));
}

/// A member that gives the answer it was told, whatever is asked, and hangs up.
struct Member {
    calls: EtcdCalls,
    answer: Arc<Mutex<Vec<u8>>>,
}

impl Member {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let calls = EtcdCalls::to(listener.local_addr().unwrap()).unwrap();
        let answer = Arc::<Mutex<Vec<u8>>>::default();
        let to_give = answer.clone();
        std::thread::spawn(move || {
            for socket in listener.incoming() {
                let mut socket = socket.unwrap();
                let mut question = [0; 4096];
                // It asks in one piece.
                let _ = socket.read(&mut question);
                let answer = to_give.lock().unwrap().clone();
                let _ = socket.write_all(&answer).and_then(|()| socket.shutdown(Shutdown::Write));
                while matches!(socket.read(&mut question), Ok(1..)) {}
            }
        });
        Self { calls, answer }
    }
}

/// Beyond the input: a whole answer, and the buffers of the HTTP client.
const HTTP_BYTES_MAX: usize = 16 << 20;

pub fn http(input: &[u8]) {
    thread_local! {
        static MEMBER: Member = Member::start();
    }
    MEMBER.with(|member| {
        *member.answer.lock().unwrap() = match input.split_first() {
            // With a head that fits, the rest is the content.
            Some((&kind @ 0..=3, body)) => with_head(kind, body),
            _ => input.to_vec(),
        };
        bounded(HTTP_BYTES_MAX + input.len() * 512, 1 << 20, || {
            let _ = member.calls.ask();
            let _ = member.calls.watch();
        });
    });
}

fn with_head(kind: u8, body: &[u8]) -> Vec<u8> {
    let status = if kind & 1 == 0 { "200 OK" } else { "503 Service Unavailable" };
    let mut answer = format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\n").into_bytes();
    if kind & 2 == 0 {
        answer.extend_from_slice(format!("Content-Length: {}\r\n\r\n", body.len()).as_bytes());
        answer.extend_from_slice(body);
    } else {
        answer.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
        for piece in body.chunks(100) {
            answer.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
            answer.extend_from_slice(piece);
            answer.extend_from_slice(b"\r\n");
        }
        answer.extend_from_slice(b"0\r\n\r\n");
    }
    answer
}
